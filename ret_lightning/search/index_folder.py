"""The folder of a search index. It contains everything that a search needs except for the checkpoint.

    DIR/manifest.json        current version, checkpoint and checksums; written last
    DIR/v1/embeddings/       the vectors, an `EmbeddingStore`
    DIR/v1/search/           the index, as written by `Index.save`
    DIR/v1/passages.arrow    ids, texts and image paths

To add passages, version 2 is built next to version 1. Version 1 answers queries until the manifest names version 2, and is
then removed. An unfinished folder has versions but no manifest.
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
    """The content of `manifest.json`.

    Attributes:
        version: number of the current version.
        model: model that encoded the passages.
        passages: number of passages.
        passages_sha256: checksum of passages.arrow.
        made_by: version of ret_lightning that wrote the index.
        format: version of the file format.
    """

    version: int
    model: ModelIdentity
    passages: int
    passages_sha256: str
    made_by: str = __version__
    format: int = FORMAT


class SearchFolder:
    """A finished index folder, opened for search.

    Args:
        folder: the index folder.
        verify: whether to compare all files with their checksums, which reads them once.
        device: device on which scores are computed. None: the CPU.

    Attributes:
        model: model that encoded the passages.
        records: ids, texts and image paths of the passages.
        short_queries: number of queries so far with fewer than top_k candidates from the index.

    Raises:
        DataError: if there is no index, it is not finished, or it is corrupt.
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
                # Another process may have added passages and removed this version in the meantime.
                if read_search_manifest(self.folder).version == manifest.version:
                    raise

    def _open(self, manifest: Manifest, verify: bool, device: str | torch.device | None) -> None:
        self.model = manifest.model
        self.version = manifest.version
        version_folder = self.folder / f"v{manifest.version}"
        if not version_folder.is_dir():
            raise self._missing_file(version_folder.name)
        if not (version_folder / PASSAGES).is_file():
            raise self._missing_file(f"{version_folder.name}/{PASSAGES}")
        if verify and sha256_of_file(version_folder / PASSAGES) != manifest.passages_sha256:
            raise DataError(
                f"{version_folder / PASSAGES}: corrupt, checksum differs from the manifest; index the passages again",
                code="index-passages-changed",
                path=version_folder / PASSAGES,
            )
        self.records = PassageRecords(version_folder / PASSAGES)
        try:
            store = EmbeddingStore.open(version_folder / EMBEDDINGS, self.model.fingerprint, verify)
            self.index = Index.load(version_folder / SEARCH, store.embeddings, device, verify)
        except DataError as error:  # add the command that fixes it
            message = f"{error.message}; run ret-index passages=FILE index=NEW_FOLDER"
            raise DataError(message, error.kind, code=error.code, **error.values) from None
        if not len(self.records) == len(store.embeddings) == manifest.passages:
            raise DataError(
                f"{self.folder}: expected {manifest.passages} passages, got {len(self.records)} passages and "
                f"{len(store.embeddings)} embeddings; index the passages again",
                code="index-counts-differ",
                path=self.folder,
                passages=len(self.records),
                embeddings=len(store.embeddings),
                expected=manifest.passages,
            )
        self.embeddings = store.embeddings

    def _missing_file(self, missing: str) -> DataError:
        return DataError(
            f"{self.folder}: {missing} is missing from the index; index the passages again",
            code="index-file-missing",
            path=self.folder / missing,
        )

    def __len__(self) -> int:
        return len(self.records)

    def search(self, queries: Tensor, top_k: int) -> list[list[Hit]]:
        """Search the passages.

        Args:
            queries: (Nq, k, d) tensor, L2-normalised.
            top_k: number of passages per query; all passages if there are fewer.

        Returns:
            The hits of each query, best first.
        """
        ranking = self.index.search(queries, min(top_k, len(self)))
        self.short_queries += 0 if ranking.short is None else int(ranking.short.sum())
        return [
            [
                Hit(rank, score, *self.records[row])
                for rank, (row, score) in enumerate(zip(*best, strict=True), start=1)
                if row >= 0
            ]
            for best in zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
        ]


def read_search_manifest(folder: Path) -> Manifest:
    """Read the manifest of a finished index; raise DataError if there is none."""
    file = folder / MANIFEST
    if not file.is_file():
        if not folder.is_dir():
            raise DataError(
                f"index={folder}: no such folder; create it with ret-index", code="index-folder-missing", path=folder
            )
        if any(VERSION.fullmatch(path.name) for path in folder.iterdir()):
            raise DataError(
                f"index={folder}: the index is not finished; run ret-index again to continue",
                code="index-not-finished",
                path=folder,
            )
        raise DataError(
            f"index={folder}: no index, {MANIFEST} is missing; create one with ret-index",
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
            f"{file}: not a valid index manifest ({error!r}); index the passages again",
            code="index-manifest-invalid",
            path=file,
        ) from None


def finish_index(folder: Path, version: int, model: ModelIdentity, records: list[PassageRecord]) -> None:
    """Make a version, whose embeddings and index are written, the current one and remove the others.

    Args:
        folder: the index folder.
        version: number of the version.
        model: model that encoded the passages.
        records: ids, texts and image paths of the passages.
    """
    file = folder / f"v{version}" / PASSAGES
    write_passage_records(file, records)
    manifest = Manifest(version, model, len(records), sha256_of_file(file))
    write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=1))
    for path in folder.iterdir():
        if VERSION.fullmatch(path.name) and path.name != f"v{version}":
            shutil.rmtree(path, ignore_errors=True)
