"""The manifest and checksums of a saved index. The passage vectors are not saved; they remain in their store.

folder/index.json    class, settings, shape of the passages, checksums; written last: a folder without it has no index
folder/*             files written by the index class
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
CHECKED_ROWS = 64  # a sample suffices: another checkpoint changes all vectors


def write_saved_index(
    folder: Path,
    kind: str,
    settings: dict[str, Any],
    passages: Embeddings,
    write: Callable[[Path], dict[str, Any]],
) -> None:
    """Write the files of an index, then index.json. The files of an earlier index are removed once the new ones are complete.

    Args:
        folder: folder to write, created if needed.
        kind: name of the index class.
        settings: arguments of its constructor.
        passages: passages that the index was built from.
        write: writes the files of the index into an empty folder and returns its state.

    Raises:
        UserError: with code `disk-full` if the disk is full.
        ConfigError: if the settings or the state are not JSON-serializable.
    """
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process
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
            (unfinished / name).replace(folder / name)
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
            f"{content['kind']}: settings and the return value of _save must be JSON-serializable ({error})",
            code="index-not-json",
            found=content["kind"],
        ) from None


def _remove_saved_index(folder: Path) -> None:
    try:
        names = read_index_manifest(folder)["files"]
    except DataError:
        names = ()
    for name in (MANIFEST, *names):
        (folder / name).unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_index_manifest(folder: Path) -> dict[str, Any]:
    """Read index.json without checking the other files.

    Raises:
        DataError: if the file is missing, malformed or of another format version.
    """
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
            f"{folder}: no saved index, {MANIFEST} is missing; save one first", code="saved-index-missing", path=folder
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder / MANIFEST}: not a valid index manifest ({error!r}); build the index again",
            code="saved-index-manifest",
            path=folder / MANIFEST,
            reason=repr(error),
        ) from None
    return content


def read_verified_manifest(folder: Path, passages: Embeddings, verify: bool) -> dict[str, Any]:
    """Read index.json and compare it with the files of the index and the passages.

    Args:
        folder: folder of the saved index.
        passages: passages that the index was built from.
        verify: whether to compare the files with their checksums.

    Raises:
        DataError: if the folder holds no index, or the index is corrupt or was built from other passages.
    """
    content = read_index_manifest(folder)
    for name, expected in content["files"].items():
        path = folder / name
        if not path.is_file():
            raise DataError(
                f"{folder}: {name} is missing from the index; build the index again",
                code="saved-index-file-missing",
                path=path,
            )
        if verify and sha256_of_file(path) != expected:
            raise DataError(
                f"{path}: checksum differs from the manifest, the file is corrupt; build the index again",
                code="saved-index-file-changed",
                path=path,
            )
    if difference := _find_difference(content, passages):
        raise DataError(
            f"{folder}: the index was built from other passages: {difference}; load it with its own passages, or build it "
            "again",
            code="saved-index-other-passages",
            path=folder,
            difference=difference,
        )
    return content


def _find_difference(content: dict[str, Any], passages: Embeddings) -> str | None:
    """Describe how the passages differ from those of the manifest; None if no difference is found."""
    shape = list(passages.vectors.shape)
    if content["passages"] != shape:
        return f"expected shape {content['passages']}, got {shape}"
    if content["ids_sha256"] != _sha256_of_ids(passages.ids):
        return f"some of the {len(passages)} ids or their order differ"
    # Manifests written before 2026-11-25 have no checksum of vectors.
    if content.get("vectors_sha256") not in (None, _sha256_of_some_vectors(passages)):
        return "same ids but different vectors, probably of another checkpoint"
    return None


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sha256_of_ids(ids: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def _sha256_of_some_vectors(passages: Embeddings) -> str:
    """Return the SHA-256 digest of evenly spaced rows in float16, including the first and the last.

    Reading all vectors would take as long as a search. Float32 vectors and their float16 store have the same digest.
    """
    last = len(passages) - 1
    rows = sorted({i * last // (CHECKED_ROWS - 1) for i in range(CHECKED_ROWS)}) if len(passages) else []
    vectors = passages.take(torch.tensor(rows, dtype=torch.int64)).cpu().half().numpy()
    return hashlib.sha256(vectors.astype("<f2").tobytes()).hexdigest()
