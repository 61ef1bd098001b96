"""Indexes on disk, without the vectors that they were built of, which stay in their store.

folder/index.json    kind, settings, shape of the pool, checksums; written last, so a folder without it holds no index
folder/*.faiss       what FAISS made, if anything
folder/maps.safetensors    the random maps of a `MuveraIndex`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ret_lightning.errors import DataError
from ret_lightning.retrieval.indexes.faiss_build import is_on_gpu
from ret_lightning.retrieval.store.embeddings import Embeddings
from ret_lightning.retrieval.store.store_plan import unknown_format
from ret_lightning.runtime.atomic_files import whole_file, write_text

if TYPE_CHECKING:
    import faiss

FORMAT, MANIFEST = 1, "index.json"
READ_BYTES = 1 << 24
ROWS_CHECKED = 64  # of the vectors, spread over the pool: another checkpoint changes all of them


def write_index_manifest(
    kind: str, settings: dict[str, Any], passages: Embeddings, state: dict[str, Any], folder: Path
) -> None:
    """Writes index.json, after the index's other files."""
    content = {
        "format": FORMAT,
        "kind": kind,
        "settings": settings,
        "passages": list(passages.vectors.shape),
        "ids_sha256": _sha256_of_ids(passages.ids),
        "vectors_sha256": _sha256_of_some_vectors(passages),
        "state": state,
        "files": {path.name: sha256_of_file(path) for path in sorted(folder.iterdir()) if is_content(path)},
    }
    write_text(folder / MANIFEST, json.dumps(content, indent=1))


def read_index_manifest(folder: Path) -> dict[str, Any]:
    """The content of index.json, its files not looked at; raises DataError where there is none, or another format's."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise unknown_format(folder / MANIFEST, content["format"], FORMAT)
        content["kind"], content["settings"], content["passages"], content["ids_sha256"], content["state"]
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


def checked_manifest(folder: Path, passages: Embeddings, verify: bool) -> dict[str, Any]:
    """The content of index.json, after the index's files and the pool were compared with it.

    Raises:
        DataError: see `Index.load`.
    """
    content = read_index_manifest(folder)
    for name, wanted in content["files"].items():
        path = folder / Path(name).name
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
    if difference := _difference(content, passages):
        raise DataError(
            f"{folder}: the index is of other passages than these: {difference}; load it with those that it was built of, or "
            "build it again",
            code="saved-index-other-passages",
            path=folder,
            difference=difference,
        )
    return content


def _difference(content: dict[str, Any], passages: Embeddings) -> str | None:
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


def write_faiss(index: faiss.Index, file: Path) -> None:
    """Writes a FAISS index, whole or not at all; one on a GPU is copied to the CPU for it."""
    import faiss

    if is_on_gpu(index):
        index = faiss.index_gpu_to_cpu(index)
    with whole_file(file) as unfinished:
        faiss.write_index(index, str(unfinished))


def read_faiss(file: Path) -> faiss.Index:
    """Reads a FAISS index into memory; raises DataError if FAISS cannot."""
    import faiss

    try:
        return faiss.read_index(str(file))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(
            f"{file}: FAISS cannot read it ({reason}); build the index again", code="faiss-file-unreadable", path=file
        ) from None


def sha256_of_file(path: Path) -> str:
    """In hexadecimal; read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _sha256_of_ids(ids: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def _sha256_of_some_vectors(passages: Embeddings) -> str:
    """Of rows that are evenly spread, the first and the last among them: to read a whole pool would take as long as a search.

    In half precision, whatever the pool is in: vectors in float32 and a store of them count as the same.
    """
    last = len(passages) - 1
    rows = sorted({place * last // (ROWS_CHECKED - 1) for place in range(ROWS_CHECKED)}) if len(passages) else []
    vectors = passages.take(torch.tensor(rows, dtype=torch.int64)).cpu().half().numpy()
    return hashlib.sha256(vectors.astype("<f2").tobytes()).hexdigest()


def is_content(path: Path) -> bool:
    """Whether a file of a saved index's folder is one that an index writes besides the manifest."""
    return path.suffix in (".faiss", ".safetensors") and not path.name.startswith(".")
