"""The folder of a search index, which has all that a search needs but the checkpoint.

    DIR/manifest.json        which version counts, of which checkpoint, and checksums; written last
    DIR/v1/embeddings/       the vectors, an `EmbeddingStore`
    DIR/v1/search/           the index, as `Index.save` leaves it
    DIR/v1/passages.arrow    ids, texts and image paths

Passages are added by making version 2 beside version 1, which answers until the manifest names the other one, and is then
removed. A folder under construction has versions and no manifest.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ret_lightning._version import __version__
from ret_lightning.errors import DataError
from ret_lightning.retrieval.indexes.base import Index
from ret_lightning.retrieval.indexes.serialization import sha256_of_file
from ret_lightning.retrieval.store.embedding_store import EmbeddingStore
from ret_lightning.retrieval.store.store_plan import unknown_format
from ret_lightning.runtime.atomic_files import write_text
from ret_lightning.search.hits import Hit
from ret_lightning.search.model_identity import ModelIdentity
from ret_lightning.search.passages import PassageRecord, PassageRecords, write_passage_records

FORMAT, MANIFEST, LOCK = 1, "manifest.json", ".lock"
EMBEDDINGS, SEARCH, PASSAGES = "embeddings", "search", "passages.arrow"
VERSION = re.compile(r"v\d+")


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        version: number of the version that counts.
        model: that encoded the passages.
        passages: how many there are.
        passages_sha256: checksum of passages.arrow.
        made_by: version of ret_lightning.
    """

    version: int
    model: ModelIdentity
    passages: int
    passages_sha256: str
    made_by: str = __version__
    format: int = FORMAT


class SearchFolder:
    """A finished index folder, opened.

    Args:
        folder: the index folder.
        verify: compares all files with their checksums, which reads them once.
        device: where scores are made; None: the CPU.

    Attributes:
        model: that encoded the passages.
        short_queries: for how many queries so far the index found fewer than top_k candidates.

    Raises:
        DataError: if there is no index, it is not finished, torn or changed.
    """

    def __init__(self, folder: str | Path, verify: bool = True, device: str | torch.device | None = None) -> None:
        self.folder = Path(folder)
        self.short_queries = 0
        while True:
            manifest = read_search_manifest(self.folder)
            try:
                self._open(manifest, verify, device)
                return
            except (DataError, OSError):
                # Passages may have been added meanwhile, and the version that they were added to removed.
                if read_search_manifest(self.folder).version == manifest.version:
                    raise

    def _open(self, manifest: Manifest, verify: bool, device: str | torch.device | None) -> None:
        self.model = manifest.model
        self.version = manifest.version
        at = self.folder / f"v{manifest.version}"
        if not at.is_dir():
            raise self._torn(at.name)
        if not (at / PASSAGES).is_file():
            raise self._torn(f"{at.name}/{PASSAGES}")
        if verify and sha256_of_file(at / PASSAGES) != manifest.passages_sha256:
            raise DataError(
                f"{at / PASSAGES}: was changed or cut short; index the passages again",
                code="index-passages-changed",
                path=at / PASSAGES,
            )
        self.shown = PassageRecords(at / PASSAGES)
        try:
            store = EmbeddingStore.open(at / EMBEDDINGS, self.model.fingerprint, verify)
            self.index = Index.load(at / SEARCH, store.embeddings, device, verify)
        except DataError as error:  # which says what is wrong, but not with which command this folder was made
            message = f"{error.message}; ret-index passages=FILE index=NEW_FOLDER makes all of it again"
            raise DataError(message, error.kind, code=error.code, **error.values) from None
        if not len(self.shown) == len(store.embeddings) == manifest.passages:
            raise DataError(
                f"{self.folder}: torn, {len(self.shown)} passages with {len(store.embeddings)} embeddings where the manifest "
                f"says {manifest.passages}; index the passages again",
                code="index-counts-differ",
                path=self.folder,
                passages=len(self.shown),
                embeddings=len(store.embeddings),
                expected=manifest.passages,
            )
        self.embeddings = store.embeddings

    def _torn(self, missing: str) -> DataError:
        return DataError(
            f"{self.folder}: torn, {missing} is missing; index the passages again",
            code="index-file-missing",
            path=self.folder / missing,
        )

    def __len__(self) -> int:
        return len(self.shown)

    def search(self, queries: Tensor, top_k: int) -> list[list[Hit]]:
        """The best passages of each query, best first.

        Args:
            queries: (Nq, k, d), of length 1.
            top_k: passages a query; all, if there are not more.
        """
        ranking = self.index.search(queries, min(top_k, len(self)))
        self.short_queries += 0 if ranking.short is None else int(ranking.short.sum())
        return [
            [
                Hit(rank, score, *self.shown[row])
                for rank, (row, score) in enumerate(zip(*best, strict=True), start=1)
                if row >= 0
            ]
            for best in zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
        ]


def read_search_manifest(folder: Path) -> Manifest:
    """The manifest of a finished index; raises DataError where there is none."""
    file = folder / MANIFEST
    if not file.is_file():
        if not folder.is_dir():
            raise DataError(f"index={folder}: no such folder", code="index-folder-missing", path=folder)
        if any(VERSION.fullmatch(path.name) for path in folder.iterdir()):
            raise DataError(
                f"index={folder}: the index is not finished; run ret-index again, it goes on where it stopped",
                code="index-not-finished",
                path=folder,
            )
        raise DataError(
            f"index={folder}: holds no index (it has no {MANIFEST}); ret-index makes one",
            code="index-missing",
            path=folder,
        )
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise unknown_format(file, content["format"], FORMAT)
        return Manifest(**{**content, "model": ModelIdentity(**content["model"])})
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: not the manifest of an index ({error!r}); index the passages again",
            code="index-manifest-invalid",
            path=file,
        ) from None


def finish_index(folder: Path, version: int, model: ModelIdentity, shown: list[PassageRecord]) -> None:
    """Makes a version, whose embeddings and index are there, the one that counts, and removes the others."""
    file = folder / f"v{version}" / PASSAGES
    write_passage_records(file, shown)
    manifest = Manifest(version, model, len(shown), sha256_of_file(file))
    write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=1))
    for path in folder.iterdir():
        if VERSION.fullmatch(path.name) and path.name != f"v{version}":
            shutil.rmtree(path, ignore_errors=True)
