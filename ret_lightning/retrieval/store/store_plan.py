"""The plan of an embedding store: its content, its division into parts, and the checksums of the parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ret_lightning.errors import DataError
from ret_lightning.runtime.atomic_files import write_text

FORMAT = 1
IDS, MANIFEST, PLAN, PARTS = "ids.json", "manifest.json", "plan.json", "parts"
SUMS = "parts_sha256"  # key of the manifest: checksum of each part
PROVISIONAL = "provisional_rows"  # key of markers and the manifest: provisional rows, if any
READ_BYTES = 1 << 24

# Little-endian on every machine.
DTYPES = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}


@dataclass(frozen=True)
class StorePlan:
    """The content of a store, as stored in `plan.json` and in the manifest.

    Attributes:
        fingerprint: fingerprint of the checkpoint that encoded the vectors; compared, not interpreted.
        config: JSON settings that determine the vectors; compared when writing continues.
        count: number of items N.
        vectors: number of vectors per item, k.
        width: width of a vector, d.
        part_rows: number of rows per part.
        ids_sha256: checksum of ids.json.
        dtype: dtype of the stored vectors, float16 or float32.
        format: version of the file format.
    """

    fingerprint: str
    config: Mapping[str, Any]
    count: int
    vectors: int
    width: int
    part_rows: int
    ids_sha256: str
    dtype: str = "float16"
    format: int = FORMAT

    @property
    def row_bytes(self) -> int:
        return self.vectors * self.width * self.numbers.itemsize

    @property
    def numbers(self) -> np.dtype:
        """NumPy dtype of a stored number."""
        return DTYPES[self.dtype]

    @property
    def vectors_file(self) -> str:
        """Name of the file of vectors: vectors.f16 or vectors.f32."""
        return f"vectors.f{8 * self.numbers.itemsize}"

    @property
    def parts(self) -> int:
        return -(-self.count // self.part_rows)

    def rows(self, part: int) -> range:
        return range(part * self.part_rows, min((part + 1) * self.part_rows, self.count))


class StoreMismatch(DataError):
    """A folder holds another store than expected; the value `difference` states how, for example `count 25, not 26`."""


def check_same_plan(folder: Path, existing: StorePlan, plan: StorePlan) -> None:
    """Raise StoreMismatch with the first difference between two plans.

    Differences of the ids are reported before those of settings, because a config may contain a digest of the rows, which
    is less informative.

    Args:
        folder: folder of the store, for the message.
        existing: plan of the store in the folder.
        plan: expected plan.
    """
    every = asdict(plan)
    for key in dict.fromkeys(("count", "ids_sha256", *every)):
        found, expected = getattr(existing, key), every[key]
        if found == expected:
            continue
        if key == "fingerprint":
            key = "checkpoint fingerprint"
        if key == "config":
            key = next(k for k in {**expected, **found} if found.get(k) != expected.get(k))
            found, expected = found.get(key), expected.get(key)
        difference = "other ids" if key == "ids_sha256" else f"{key} {found!r}, not {expected!r}"
        raise StoreMismatch(
            f"{folder}: holds an embedding store with {difference}; delete it or choose another folder",
            code="store-of-another-plan",
            path=folder,
            difference=difference,
        )


def read_plan(folder: Path, name: str) -> StorePlan:
    """Read the plan in `plan.json` or the manifest; raise DataError if the file is not a valid plan."""
    content = read_store_json(folder / name)
    for key in (SUMS, PROVISIONAL):
        content.pop(key, None)
    if content.get("format") != FORMAT:
        raise unknown_format(folder / name, content.get("format"), FORMAT)
    try:
        plan = StorePlan(**content)
        numbers = (plan.count, plan.vectors, plan.width, plan.part_rows)
        if any(type(number) is not int or number < low for number, low in zip(numbers, (0, 1, 1, 1), strict=True)):
            raise TypeError("a size is not a valid integer")
        if plan.dtype not in DTYPES:
            raise TypeError(f"dtype {plan.dtype!r}")
    except TypeError as error:
        raise DataError(
            f"{folder / name}: not a valid {name} of an embedding store ({error}); encode again",
            code="store-plan-invalid",
            path=folder / name,
            reason=str(error),
        ) from None
    return plan


def unknown_format(path: Path, found: Any, known: int) -> DataError:
    """Return the error for a file of another format version."""
    return DataError(
        f"{path}: format: expected {known}, got {found!r}; written by another version of ret_lightning",
        code="file-format-unknown",
        path=path,
        found=repr(found),
        allowed=known,
    )


def read_store_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; raise DataError if the file does not contain one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: not readable as JSON ({error}); encode the store again", code="store-json-unreadable", path=file
        ) from None
    if not isinstance(content, dict):
        raise DataError(
            f"{file}: expected a JSON object, got {type(content).__name__}; encode the store again",
            code="store-json-no-object",
            path=file,
        )
    return content


def marker_file(folder: Path, part: int) -> Path:
    """Return the path of the marker of a complete part, which holds its checksum."""
    return folder / PARTS / f"{part:06d}.json"


def write_marker(folder: Path, part: int, checksum: str, provisional: Sequence[int] = ()) -> None:
    """Mark a part as complete."""
    content = {"sha256": checksum} | ({PROVISIONAL: list(provisional)} if provisional else {})
    write_text(marker_file(folder, part), json.dumps(content))


def provisional_rows(folder: Path, part: int) -> list[int]:
    """Return the provisional rows of a complete part."""
    return read_store_json(marker_file(folder, part)).get(PROVISIONAL, [])


def reopen_if_provisional(folder: Path, plan: StorePlan) -> bool:
    """Turn a finished store with provisional rows into a store in progress.

    Returns:
        Whether the store had provisional rows.
    """
    manifest = read_store_json(folder / MANIFEST)
    if not manifest.get(PROVISIONAL) or not _has_checksums(manifest, plan):
        return False
    _reopen(folder, plan, manifest)
    return True


def drop_rows(folder: Path, rows: Iterable[int]) -> None:
    """Discard rows of a store, finished or not, so that their parts are written again.

    Args:
        folder: folder of the store.
        rows: positions in the ids.
    """
    finished = (folder / MANIFEST).exists()
    plan = read_plan(folder, MANIFEST if finished else PLAN)
    parts = {row // plan.part_rows for row in rows}
    if finished:
        manifest = read_store_json(folder / MANIFEST)
        _reopen(folder, plan, manifest, parts if _has_checksums(manifest, plan) else range(plan.parts))
    for part in parts:
        marker_file(folder, part).unlink(missing_ok=True)


def change_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Replace the config in the plan of a store in progress."""
    plan = replace(read_plan(folder, PLAN), config=json.loads(json.dumps(config)))
    write_text(folder / PLAN, json.dumps(asdict(plan), indent=1))


def _has_checksums(manifest: Mapping[str, Any], plan: StorePlan) -> bool:
    sums = manifest.get(SUMS)
    return isinstance(sums, list) and len(sums) == plan.parts


def _reopen(folder: Path, plan: StorePlan, manifest: Mapping[str, Any], without: Collection[int] = ()) -> None:
    """Replace the manifest by the plan and the markers of all parts except those in `without`."""
    (folder / PARTS).mkdir(exist_ok=True)
    provisional = manifest.get(PROVISIONAL, [])
    for part in range(plan.parts):
        if part in without:
            marker_file(folder, part).unlink(missing_ok=True)
        else:
            write_marker(folder, part, manifest[SUMS][part], [row for row in provisional if row in plan.rows(part)])
    write_text(folder / PLAN, json.dumps(asdict(plan), indent=1))
    (folder / MANIFEST).unlink(missing_ok=True)  # last, because the store is finished as long as it exists


def sha256(content: bytes) -> str:
    """Return the SHA-256 digest in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_part(folder: Path, plan: StorePlan, part: int) -> str:
    """Return the SHA-256 digest of the bytes of a part in hexadecimal."""
    rows, digest = plan.rows(part), hashlib.sha256()
    remaining = len(rows) * plan.row_bytes
    with (folder / plan.vectors_file).open("rb") as file:
        file.seek(rows.start * plan.row_bytes)
        while remaining and (block := file.read(min(remaining, READ_BYTES))):
            digest.update(block)
            remaining -= len(block)
    return digest.hexdigest()
