"""The vectors of an evaluation by itself: on disk, so that one that was interrupted goes on where it stopped.

    folder/<subset>/passages/   an `EmbeddingStore` in half precision
    folder/<subset>/queries/    one in float32
    folder/<subset>/index/      an approximate index, from when the first rank has built it until all have loaded it

All ranks write into the same stores, each the parts that are its own, and map them when all is encoded.
"""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from ret_lightning.data.rows import CONTENT, Passage, Query, content_digest
from ret_lightning.data.sampling.batch_samplers import evaluation_batches
from ret_lightning.data.types import EvaluationSubset, distinct_ids
from ret_lightning.distributed.barrier import Meeting
from ret_lightning.distributed.collectives import rank, world_size
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.evaluation.batch_limits import limited_batches
from ret_lightning.evaluation.embedding_sink import EncodedSubset
from ret_lightning.models import RetRetriever
from ret_lightning.models.checkpoint.fingerprint import fingerprint
from ret_lightning.retrieval import Embeddings, EmbeddingStore, Index, share_of
from ret_lightning.retrieval.indexes.base import KINDS, index_like, settings_of
from ret_lightning.retrieval.store.embedding_store import StoreInProgress, StoreWriter
from ret_lightning.retrieval.store.store_plan import AnotherStore

log = logging.getLogger(__name__)

PASSAGES, QUERIES, INDEX = "passages", "queries", "index"
DTYPES = {PASSAGES: "float16", QUERIES: "float32"}  # those of `VectorsInMemory`


@dataclass
class _File:
    """The store of a pool or of a file of queries, while this rank writes its part of it."""

    store: StoreInProgress
    was_finished: bool
    writer: StoreWriter
    taken: int = 0  # of `writer.rows`


class StoredVectors:
    """Takes vectors for `RetrievalEvaluation` as `VectorsInMemory` does, and keeps them in stores.

    Args:
        folder: where the stores are, or will be.
        retriever: that encodes.
        made_with: settings that decide the vectors besides the model and the rows; JSON. A store that was begun with others
            is not gone on with.

    Attributes:
        before: by loader, how many rows were encoded before this process began; after `begin`.
        check: called on all ranks when all is encoded, before the stores are finished; raises where they must not be.
    """

    def __init__(self, folder: Path, retriever: RetRetriever, made_with: Mapping[str, Any]) -> None:
        self.folder = folder
        self.before: list[int] = []
        self.check: Callable[[], None] = lambda: None
        self._fingerprint = fingerprint(retriever)
        self._shapes = {PASSAGES: retriever.passage_tower.row_shape, QUERIES: retriever.query_tower.row_shape}
        self._made_with = made_with
        self._files: list[_File] = []
        self._embeddings: list[Embeddings] = []
        self._meeting: Meeting | None = None

    def begin(
        self,
        subsets: Sequence[EvaluationSubset],
        batch_size: int,
        limit: int | float | None = None,
        still_imageless: Callable[[int, list[int]], bool] = lambda loader, rows: False,
    ) -> list[list[list[int]]]:
        """Makes the stores, or finds what is in them; called on all ranks together, once.

        Args:
            subsets: what is to be encoded.
            batch_size: rows a batch.
            limit: encode the first so many batches of each pool and file of queries, or that share of them; None: all.
            still_imageless: asked, once for each part of a store that is this rank's, with the loader and those of the part's
                rows that were encoded without their images: whether none of these can be read now, either. Otherwise the part
                is encoded again.

        Returns:
            Of each loader (a subset's pool and then its queries, subset by subset) the batches that this rank has to encode.

        Raises:
            DataError: if what is there was made with another checkpoint, of other rows or with other settings.
            ConfigError: if the limit leaves nothing, or a rank does not see the folder of the first.
        """
        self._meeting = Meeting()
        self._find_folder()
        plans = [
            (subset, side, rows[: limited_rows(len(rows), batch_size, limit, f"{subset.split}/{subset.name} {side}")])
            for subset in subsets
            for side, rows in ((PASSAGES, subset.pool), (QUERIES, subset.queries))
        ]
        stores: list[StoreInProgress] = []
        for turn in range(2):  # the first rank makes them, the others find them, in the same folder
            if (rank() == 0) == (turn == 0):
                stores = [self._store(*plan, batch_size) for plan in plans]
            self._meeting.wait()
        if rank() == 0:  # of an evaluation that was killed while it searched
            for subset in subsets:
                shutil.rmtree(self.folder / subset.name / INDEX, ignore_errors=True)
        ranks = world_size()
        self._files = [
            # As `data.sampling.batch_samplers.dealt` does it, each file begins with another rank.
            _File(
                store, store.finished, store.writer((rank() - number) % ranks, ranks, partial(still_imageless, number))
            )
            for number, store in enumerate(stores)
        ]
        missing = self._meeting.sums([len(file.writer.rows) for file in self._files])
        self.before = [len(rows) - left for (_, _, rows), left in zip(plans, missing, strict=True)]
        if not any(self.before):
            log.info("embeddings go to %s, and the same command goes on there after an interruption", self.folder)
        for (subset, side, rows), there in zip(plans, self.before, strict=True):
            if there:
                log.info("%s: %d of %d %s are encoded already", subset.name, there, len(rows), side)
        return [evaluation_batches(file.writer.rows, batch_size) for file in self._files]

    def start(self) -> None:
        """What is in the stores stays."""

    def add(self, loader: int, rows: Tensor, vectors: Tensor, imageless: Sequence[int] = ()) -> None:
        """See `Vectors`; rows have to come in the order of `begin`.

        Raises:
            DataError: naming the first row whose vectors are not finite.
        """
        file = self._files[loader]
        expected = file.writer.rows[file.taken : file.taken + len(rows)]
        if not expected:
            return  # a row that is there already, for a rank that has nothing to do: see `batch_samplers.never_idle`
        if rows.tolist() != expected:
            raise RuntimeError(f"{file.store.folder}: rows {rows.tolist()} came where {expected} were due")
        finite = vectors.isfinite().flatten(1).all(dim=1).tolist()
        if not all(finite):
            raise DataError(
                f"{file.store.folder.parent.name}: the checkpoint encodes row {rows[finite.index(False)]} (from 0) of the "
                f"{file.store.folder.name} to numbers that are not finite, so nothing can be ranked; give another checkpoint, "
                "or trainer.precision=32-true if it was evaluated in a lower one",
                code="stored-vectors-not-finite",
                path=file.store.folder,
                row=int(rows[finite.index(False)]),
            )
        file.writer.add(vectors, provisional=imageless)
        file.taken += len(rows)

    def complete(self) -> None:
        """Waits for all ranks, has `check` look at what they did, and opens what they wrote.

        Raises:
            DataError: if a store is torn, or was changed meanwhile.
        """
        self._meeting.wait()
        self.check()
        if rank() == 0:
            for file in self._files:
                if file.was_finished:  # by an earlier process: nobody has looked at its content since
                    EmbeddingStore.open(file.store.folder, self._fingerprint)
                file.store.finish()
        self._meeting.wait()
        self._embeddings = [EmbeddingStore.open(file.store.folder, verify=False).embeddings for file in self._files]

    def subset(self, number: int, subset: EvaluationSubset, device: torch.device) -> EncodedSubset:
        """See `Vectors`."""
        passages, queries = self._embeddings[2 * number : 2 * number + 2]
        return _StoredSubset(passages, queries, self.folder / subset.name / INDEX, self._meeting)

    def remove(self) -> None:
        """Deletes the stores; called on all ranks together, when nothing else holds what was taken from them.

        NFS keeps a deleted file that is still mapped somewhere, by another name, and its folder with it.
        """
        self._files, self._embeddings = [], []
        gc.collect()  # a map is closed with the last tensor of it, which may hang in a circle of references
        self._meeting.wait()
        if rank() != 0:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            log.warning("%s: some of the embeddings cannot be removed; nobody needs them any more", self.folder)

    def _find_folder(self) -> None:
        """Makes the folder, on the first rank; on the others sees whether it is the same one, not one of the same name.

        A rank on another machine, which SLURM starts by a command of its own, may have another disk or another `${now}`.
        """
        if world_size() == 1:
            return
        sign = self.folder / self._meeting.from_first(f".seen-{uuid4().hex}")
        if rank() == 0:
            sign.parent.mkdir(parents=True, exist_ok=True)
            sign.touch()
        self._meeting.wait()
        blind = self._meeting.sums([int(number == rank() and not sign.exists()) for number in range(world_size())])
        output = self._meeting.from_first(str(self.folder.parent))
        if rank() == 0:
            sign.unlink()
        if any(blind):
            raise ConfigError(
                f"rank {blind.index(1)} does not see output_dir={output}; give output_dir=DIR on a disk that all machines "
                "share",
                code="output-dir-not-shared",
                path=output,
                rank=blind.index(1),
            )

    def _store(
        self, subset: EvaluationSubset, side: str, rows: Sequence[Passage] | Sequence[Query], batch_size: int
    ) -> StoreInProgress:
        ids = [row.passage_id for row in rows] if side == PASSAGES else distinct_ids(rows)
        try:
            return EmbeddingStore.create(
                self.folder / subset.name / side,
                ids,
                self._shapes[side],
                self._fingerprint,
                {"split": subset.split, **self._made_with, CONTENT: content_digest(rows)},
                dtype=DTYPES[side],
                batch_rows=batch_size,
            )
        except AnotherStore as error:
            raise DataError(
                f"{self.folder}: holds {side} of {subset.name} from another evaluation, with {error.difference}; delete this "
                "folder, or choose another output_dir",
                code="stored-vectors-differ",
                path=self.folder,
                difference=error.difference,
            ) from None


class _StoredSubset(EncodedSubset):
    def __init__(self, passages: Embeddings, queries: Embeddings, folder: Path, meeting: Meeting) -> None:
        stretch = share_of(len(passages))
        self.pool_rows = torch.arange(len(passages))
        self.query_rows = torch.arange(len(queries))
        self.queries = queries.vectors
        self.share = passages.part(stretch.start, stretch.stop)
        self.positions = torch.arange(stretch.start, stretch.stop)
        self._passages = passages
        self._folder = folder
        self._meeting = meeting

    def index_of_all(self, index: Index) -> Index:
        """The first rank builds it of the mapped store and saves it, and all load it; one of no known kind is built by each."""
        if world_size() == 1 or type(index).__name__ not in KINDS:
            index.build(self._passages)
            return index
        if rank() == 0:
            log.info(
                "the first rank builds the index of %d passages, and the other %d wait for it, without a time limit",
                *(len(self._passages), world_size() - 1),
            )
            # Another object: what it holds is not needed here any longer once it is saved.
            built = index_like(type(index).__name__, settings_of(index), index.device)
            built.build(self._passages)
            built.save(self._folder)
            del built
        self._meeting.wait()
        # On the first rank too: a loaded FAISS index is on the CPU, and all ranks have to find the same.
        loaded = Index.load(self._folder, self._passages, index.device, verify=False)
        self._meeting.wait()
        if rank() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        return loaded


def limited_rows(count: int, batch_size: int, limit: int | float | None, what: str = "rows") -> int:
    """How many of so many rows a limit leaves: whole batches, whatever the number of ranks.

    Args:
        count: of the rows.
        batch_size: rows a batch.
        limit: a number of batches, or a share of them, as `trainer.limit_test_batches`; None or 1.0: all.
        what: the rows are, for messages.

    Raises:
        ConfigError: if it leaves none.
    """
    batches = limited_batches(-(-count // batch_size), limit, "the limit of batches", what)
    return min(count, batches * batch_size)
