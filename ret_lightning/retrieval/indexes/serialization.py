"""The manifest and the checksums of a saved index, without the vectors that it was built of, which stay in their store.

folder/index.json    class, settings, shape of the pool, checksums; written last, so a folder without it holds no index
folder/*             the files that the class wrote
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ret_lightning.errors import ConfigError, DataError
from ret_lightning.retrieval.store.embeddings import Embeddings
from ret_lightning.retrieval.store.store_plan import unknown_format
from ret_lightning.runtime.atomic_files import disk_full, disk_is_full, write_text

FORMAT, MANIFEST, UNFINISHED = 1, "index.json", ".unfinished"
READ_BYTES = 1 << 24
CHECKED_ROWS = 64  # of the vectors, spread over the pool: another checkpoint changes all of them


def write_saved_index(
    folder: Path,
    kind: str,
    settings: dict[str, Any],
    passages: Embeddings,
    write: Callable[[Path], dict[str, Any]],
) -> None:
    """Write an index's files, then index.json; what the folder had of an earlier index is removed once they are complete.

    Args:
        folder: created if needed.
        kind: name of the class.
        settings: arguments of its constructor.
        passages: that the index was built of.
        write: writes its files into an empty folder and returns its state.

    Raises:
        UserError: `disk-full`.
    """
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process
    unfinished.mkdir(parents=True)
    try:
        state = write(unfinished)
        names = sorted(each.relative_to(unfinished).as_posix() for each in unfinished.rglob("*") if each.is_file())
        content = {
            "format": FORMAT,
            "kind": kind,
            "settings": settings,
            "passages": list(passages.vectors.shape),
            "ids_sha256": _sha256_of_ids(passages.ids),
            "vectors_sha256": _sha256_of_some_vectors(passages),
            "state": state,
            "files": {name: sha256_of_file(unfinished / name) for name in names},
        }
        text = _json(content)
        _remove_saved_index(folder)
        for name in names:
            _flush_to_disk(unfinished / name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(unfinished / name, folder / name)
    except Exception as error:
        size = sum(each.stat().st_size for each in unfinished.rglob("*") if each.is_file())
        shutil.rmtree(unfinished, ignore_errors=True)
        if disk_is_full(error, folder, size):
            raise disk_full(folder) from error
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    write_text(folder / MANIFEST, text)


def _json(content: dict[str, Any]) -> str:
    try:
        return json.dumps(content, indent=1)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{content['kind']}: its settings and what _save returns cannot be stored as JSON ({error})",
            code="index-not-json",
            found=content["kind"],
        ) from None


def _remove_saved_index(folder: Path) -> None:
    try:
        names = read_index_manifest(folder)["files"]
    except DataError:  # there is none, or none whose files are known
        names = ()
    for name in (MANIFEST, *names):
        (folder / name).unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_index_manifest(folder: Path) -> dict[str, Any]:
    """The content of index.json, its files not looked at; raises DataError where there is none, or another format's."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise unknown_format(folder / MANIFEST, content["format"], FORMAT)
        content["kind"], content["settings"], content["passages"], content["ids_sha256"], content["state"]
        if outside := [name for name in content["files"] if Path(name).is_absolute() or ".." in Path(name).parts]:
            raise ValueError(f"{outside[0]} is outside the folder")
        content["files"].items()
    except FileNotFoundError:
        raise DataError(
            f"{folder}: no saved index, it has no {MANIFEST}", code="saved-index-missing", path=folder
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder / MANIFEST}: not the manifest of an index ({error!r}); build the index again",
            code="saved-index-manifest",
            path=folder / MANIFEST,
        ) from None
    return content


def read_verified_manifest(folder: Path, passages: Embeddings, verify: bool) -> dict[str, Any]:
    """The content of index.json, after the index's files and the pool were compared with it.

    Raises:
        DataError: see `Index.load`.
    """
    content = read_index_manifest(folder)
    for name, wanted in content["files"].items():
        path = folder / name
        if not path.is_file():
            raise DataError(
                f"{folder}: torn, {name} is missing; build the index again", code="saved-index-file-missing", path=path
            )
        if verify and sha256_of_file(path) != wanted:
            raise DataError(
                f"{path}: was changed or cut short, its checksum is not the manifest's; build the index again",
                code="saved-index-file-changed",
                path=path,
            )
    if difference := _find_difference(content, passages):
        raise DataError(
            f"{folder}: the index is of other passages than these: {difference}; load it with those that it was built of, or "
            "build it again",
            code="saved-index-other-passages",
            path=folder,
            difference=difference,
        )
    return content


def _find_difference(content: dict[str, Any], passages: Embeddings) -> str | None:
    """What tells the pool of a manifest from these passages; None where nothing does."""
    shape = list(passages.vectors.shape)
    if content["passages"] != shape:
        return f"their shape is {content['passages']} there and {shape} here"
    if content["ids_sha256"] != _sha256_of_ids(passages.ids):
        return f"of the {len(passages)} ids some are others, or in another order"
    # Manifests of before 2026-11-25 have no checksum of vectors. They are loaded as ever: most are in folders of ret-index,
    # whose stores are compared with the checkpoint's fingerprint, and to refuse them would cost an encoding for nothing.
    if content.get("vectors_sha256") not in (None, _sha256_of_some_vectors(passages)):
        return "the ids are the same and the vectors are others, as another checkpoint makes them"
    return None


def sha256_of_file(path: Path) -> str:
    """In hexadecimal; read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sha256_of_ids(ids: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def _sha256_of_some_vectors(passages: Embeddings) -> str:
    """Of rows that are evenly spread, the first and the last among them: to read a whole pool would take as long as a search.

    In half precision, whatever the pool is in: vectors in float32 and a store of them count as the same.
    """
    last = len(passages) - 1
    rows = sorted({place * last // (CHECKED_ROWS - 1) for place in range(CHECKED_ROWS)}) if len(passages) else []
    vectors = passages.take(torch.tensor(rows, dtype=torch.int64)).cpu().half().numpy()
    return hashlib.sha256(vectors.astype("<f2").tobytes()).hexdigest()
