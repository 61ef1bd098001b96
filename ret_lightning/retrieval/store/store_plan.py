"""What a store of embeddings is to hold, how its parts are told apart, and the checksums that they are known by."""

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
SUMS = "parts_sha256"  # in the manifest: the checksum of each part
PROVISIONAL = "provisional_rows"  # in a note and in the manifest: those of its rows that are, if any
READ_BYTES = 1 << 24

# Little-endian, whatever the machine is.
DTYPES = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}


@dataclass(frozen=True)
class StorePlan:
    """What a store is to hold: `plan.json`, and the head of the manifest.

    Attributes:
        fingerprint: tells the checkpoint that made the vectors from any other; compared, not interpreted.
        config: how they were made, as JSON; for the reader, and compared when writing goes on.
        count, vectors, width: N, k and d.
        part_rows: rows a part.
        ids_sha256: checksum of ids.json.
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
        """How a number is stored."""
        return DTYPES[self.dtype]

    @property
    def vectors_file(self) -> str:
        """The name of the file of vectors: vectors.f16 or vectors.f32."""
        return f"vectors.f{8 * self.numbers.itemsize}"

    @property
    def parts(self) -> int:
        return -(-self.count // self.part_rows)

    def rows(self, part: int) -> range:
        return range(part * self.part_rows, min((part + 1) * self.part_rows, self.count))


class StoreMismatch(DataError):
    """A folder holds a store that is not the one that was wanted; its value `difference` reads `count 25, not 26`."""


def check_same_plan(folder: Path, before: StorePlan, plan: StorePlan) -> None:
    """Raises StoreMismatch, naming the first difference, where the plan in a folder is not the one that is wanted.

    Other rows are told of before other settings: a config may hold a digest of the rows, which says less.
    """
    every = asdict(plan)
    for key in dict.fromkeys(("count", "ids_sha256", *every)):
        found, wanted = getattr(before, key), every[key]
        if found == wanted:
            continue
        if key == "fingerprint":
            key = "checkpoint fingerprint"
        if key == "config":
            key = next(k for k in {**wanted, **found} if found.get(k) != wanted.get(k))
            found, wanted = found.get(key), wanted.get(key)
        what = "other ids" if key == "ids_sha256" else f"{key} {found!r}, not {wanted!r}"
        raise StoreMismatch(
            f"{folder}: holds a store with {what}; delete it or choose another folder",
            code="store-of-another-plan",
            path=folder,
            difference=what,
        )


def read_plan(folder: Path, name: str) -> StorePlan:
    """The plan in `plan.json` or the manifest; raises DataError if the file is not one."""
    content = read_store_json(folder / name)
    for key in (SUMS, PROVISIONAL):
        content.pop(key, None)
    if content.get("format") != FORMAT:
        raise unknown_format(folder / name, content.get("format"), FORMAT)
    try:
        plan = StorePlan(**content)
        numbers = (plan.count, plan.vectors, plan.width, plan.part_rows)
        if any(type(number) is not int or number < low for number, low in zip(numbers, (0, 1, 1, 1), strict=True)):
            raise TypeError("a size is not a whole number")
        if plan.dtype not in DTYPES:
            raise TypeError(f"dtype {plan.dtype!r}")
    except TypeError as error:
        raise DataError(
            f"{folder / name}: not the {name} of a store ({error}); encode it again",
            code="store-plan-invalid",
            path=folder / name,
        ) from None
    return plan


def unknown_format(path: Path, found: Any, known: int) -> DataError:
    """The error of a file that another version of the package wrote."""
    return DataError(
        f"{path}: format {found!r} is not known, only {known}",
        code="file-format-unknown",
        path=path,
        found=repr(found),
        allowed=known,
    )


def read_store_json(file: Path) -> dict[str, Any]:
    """A JSON object; raises DataError if the file holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read as JSON ({error}); encode the store again", code="store-json-unreadable", path=file
        ) from None
    if not isinstance(content, dict):
        raise DataError(
            f"{file}: must be a JSON object; encode the store again", code="store-json-no-object", path=file
        )
    return content


def marker_file(folder: Path, part: int) -> Path:
    """The file that says that a part is complete, and its checksum."""
    return folder / PARTS / f"{part:06d}.json"


def write_marker(folder: Path, part: int, checksum: str, provisional: Sequence[int] = ()) -> None:
    """Says that a part is complete."""
    content = {"sha256": checksum} | ({PROVISIONAL: list(provisional)} if provisional else {})
    write_text(marker_file(folder, part), json.dumps(content))


def provisional_rows(folder: Path, part: int) -> list[int]:
    """Those of the rows of a part that is complete which its note says so of."""
    return read_store_json(marker_file(folder, part)).get(PROVISIONAL, [])


def reopen_if_provisional(folder: Path, plan: StorePlan) -> bool:
    """Make a finished store with provisional rows one in progress again; returns whether it had any."""
    manifest = read_store_json(folder / MANIFEST)
    if not manifest.get(PROVISIONAL) or not _has_checksums(manifest, plan):
        return False
    _reopen(folder, plan, manifest)
    return True


def drop_rows(folder: Path, rows: Iterable[int]) -> None:
    """Have rows of a store, finished or not, written again, by whole parts.

    Args:
        folder: of the store.
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
    """Have the plan of a store in progress state how its vectors are made now."""
    plan = replace(read_plan(folder, PLAN), config=json.loads(json.dumps(config)))
    write_text(folder / PLAN, json.dumps(asdict(plan), indent=1))


def _has_checksums(manifest: Mapping[str, Any], plan: StorePlan) -> bool:
    sums = manifest.get(SUMS)
    return isinstance(sums, list) and len(sums) == plan.parts


def _reopen(folder: Path, plan: StorePlan, manifest: Mapping[str, Any], without: Collection[int] = ()) -> None:
    """Replace a manifest by the notes of its parts, except some, and the plan."""
    (folder / PARTS).mkdir(exist_ok=True)
    again = manifest.get(PROVISIONAL, [])
    for part in range(plan.parts):
        if part in without:
            marker_file(folder, part).unlink(missing_ok=True)
        else:
            write_marker(folder, part, manifest[SUMS][part], [row for row in again if row in plan.rows(part)])
    write_text(folder / PLAN, json.dumps(asdict(plan), indent=1))
    (folder / MANIFEST).unlink(missing_ok=True)  # last of all: until then the store is finished


def sha256(content: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_part(folder: Path, plan: StorePlan, part: int) -> str:
    """Of the bytes of a part, read piece by piece."""
    rows, digest = plan.rows(part), hashlib.sha256()
    left = len(rows) * plan.row_bytes
    with open(folder / plan.vectors_file, "rb") as file:
        file.seek(rows.start * plan.row_bytes)
        while left and (piece := file.read(min(left, READ_BYTES))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()
