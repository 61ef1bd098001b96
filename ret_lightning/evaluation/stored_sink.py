"""Vectors of an evaluation on disk, so that one that was interrupted continues where it stopped.

    folder/<subset>/passages/   an `EmbeddingStore` in half precision
    folder/<subset>/queries/    one in float32
    folder/<subset>/index/      an approximate index, from when the first rank has built it until all have loaded it

All ranks write into the same stores, each the parts that are its own, and map them when all is encoded.
"""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from ret_lightning.data.bad_rows import Tally
from ret_lightning.data.batch import EvaluationBatch
from ret_lightning.data.rows import CONTENT, Passage, Query, hash_content
from ret_lightning.data.sampling.batch_samplers import split_evaluation_batches
from ret_lightning.data.torch_datasets import EvaluationRows
from ret_lightning.data.types import PLURAL, SIDES, EvaluationSubset, Side, Split, distinct_ids
from ret_lightning.distributed.barrier import Barrier
from ret_lightning.distributed.collectives import rank, world_size
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.evaluation.embedding_sink import DTYPES, EmbeddingSink, EncodedSubset, limited_rows
from ret_lightning.evaluation.encode_rows import check_finite
from ret_lightning.models.checkpoint.fingerprint import fingerprint
from ret_lightning.models.two_towers import TwoTowers
from ret_lightning.retrieval import Embeddings, EmbeddingStore, Index, share_of
from ret_lightning.retrieval.store.embedding_store import StoreInProgress, StoreWriter
from ret_lightning.retrieval.store.store_plan import AnotherStore

log = logging.getLogger(__name__)

INDEX = "index"


@dataclass
class _File:
    """The store of a pool or of a file of queries, while this rank writes its part of it."""

    rows: EvaluationRows
    store: StoreInProgress
    was_finished: bool
    writer: StoreWriter
    taken: int = 0  # of `writer.rows`


class StoredSink(EmbeddingSink):
    """Keeps vectors in stores; the rankings are those of a `MemorySink`.

    Args:
        folder: where the stores are, or will be.
        retriever: that encodes.
        split: of the rows.
        made_with: settings that decide the vectors besides the model and the rows; JSON. A store that was begun with others
            is refused.

    Attributes:
        before: by subset and side, how many rows were encoded before this process began; after `begin`.
    """

    def __init__(
        self, folder: Path, retriever: TwoTowers, split: Split = "test", made_with: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.before: dict[tuple[str, Side], int] = {}
        self._fingerprint = fingerprint(retriever)
        self._shapes = {"passage": retriever.passage_tower.row_shape, "query": retriever.query_tower.row_shape}
        self._made_with = {"split": split, **(made_with or {})}
        self._files: dict[tuple[str, Side], _File] = {}
        self._embeddings: dict[tuple[str, Side], Embeddings] = {}
        self._barrier: Barrier | None = None

    def begin(
        self, files: Sequence[EvaluationRows], batch_size: int, limit: int | float | None = None
    ) -> list[list[list[int]]]:
        """Make the stores, or find what is in them; all ranks call this together, once.

        A part of a store with rows that were encoded without their images is encoded again if one of these can be read now.

        Args:
            files: one of each side of each subset.
            batch_size: rows a batch.
            limit: encode the first so many batches of each file, or that share of them; None: all.

        Returns:
            Of each file the batches that this rank has to encode.

        Raises:
            DataError: if what is there was made with another checkpoint, of other rows or with other settings.
            ConfigError: if the limit leaves nothing, or a rank does not see the folder of the first.
        """
        self.counts.start()
        self._barrier = Barrier()
        self._find_folder()
        counts = [limited_rows(len(f), batch_size, limit, f"{f.subset} {PLURAL[f.side]}") for f in files]
        stores: list[StoreInProgress] = []
        for turn in range(2):  # the first rank makes them, the others find them, in the same folder
            if (rank() == 0) == (turn == 0):
                stores = [self._store(f, f.rows[:count], batch_size) for f, count in zip(files, counts, strict=True)]
            self._barrier.wait()
        if rank() == 0:  # of an evaluation that was killed while it searched
            for file in files:
                shutil.rmtree(self.folder / file.subset / INDEX, ignore_errors=True)
        ranks, bad = world_size(), [Tally() for _ in files]
        for number, (file, store) in enumerate(zip(files, stores, strict=True)):
            # As `data.sampling.batch_samplers.distribute_batches` does it, each file begins with another rank.
            writer = store.writer((rank() - number) % ranks, ranks, partial(_still_imageless, file, bad[number]))
            self._files[file.subset, file.side] = _File(file, store, store.finished, writer)
        missing = self._barrier.all_reduce_sum([len(file.writer.rows) for file in self._files.values()])
        there = [count - left for count, left in zip(counts, missing, strict=True)]
        self.before = dict(zip(self._files, there, strict=True))
        if not any(there):
            log.info("embeddings go to %s; after an interruption the same command continues there", self.folder)
        for file, encoded, count, own_bad in zip(files, there, counts, bad, strict=True):
            self.counts.add_before(file.subset, file.side, encoded, own_bad)
            if encoded:
                log.info("%s: %d of %d %s are encoded already", file.subset, encoded, count, PLURAL[file.side])
        return [split_evaluation_batches(file.writer.rows, batch_size) for file in self._files.values()]

    def start(self) -> None:
        """Keep what is in the stores; `begin` has started the counts."""

    def encoded(self, subset: EvaluationSubset, device: torch.device) -> EncodedSubset:
        """What is stored of a subset; see `EmbeddingSink.encoded`."""
        passages, queries = (self._embeddings[subset.name, side] for side in SIDES)
        return _StoredSubset(passages, queries, self.folder / subset.name / INDEX, self._barrier)

    def _add(self, batch: EvaluationBatch, vectors: Tensor) -> None:
        """Write a batch; rows have to come in the order of `begin`. Raises DataError where vectors are not finite."""
        if batch.is_repeated:
            return
        file = self._files[batch.subset, batch.side]
        expected = file.writer.rows[file.taken : file.taken + len(batch)]
        if batch.rows.tolist() != expected:
            raise RuntimeError(f"{file.store.folder}: rows {batch.rows.tolist()} came where {expected} were due")
        check_finite(file.rows, batch, vectors, ", or trainer.precision=32-true if this is a lower one")
        file.writer.add(vectors, provisional=batch.imageless)
        file.taken += len(batch)

    def _wait(self) -> None:
        self._barrier.wait()

    def _finish(self) -> None:
        if rank() == 0:
            for file in self._files.values():
                if file.was_finished:  # by an earlier process: nobody has looked at its content since
                    EmbeddingStore.open(file.store.folder, self._fingerprint)
                file.store.finish()
        self._barrier.wait()
        self._embeddings = {
            key: EmbeddingStore.open(file.store.folder, verify=False).embeddings for key, file in self._files.items()
        }

    def remove(self) -> None:
        """Deletes the stores; called on all ranks together, when nothing else holds what was taken from them.

        NFS keeps a deleted file that is still mapped somewhere, by another name, and its folder with it.
        """
        self._files, self._embeddings = {}, {}
        gc.collect()  # a map is closed with the last tensor of it, which may hang in a circle of references
        self._barrier.wait()
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
        sign = self.folder / self._barrier.broadcast(f".seen-{uuid4().hex}")
        if rank() == 0:
            sign.parent.mkdir(parents=True, exist_ok=True)
            sign.touch()
        self._barrier.wait()
        blind = self._barrier.all_reduce_sum(
            [int(number == rank() and not sign.exists()) for number in range(world_size())]
        )
        output = self._barrier.broadcast(str(self.folder.parent))
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
        self, file: EvaluationRows, rows: Sequence[Passage] | Sequence[Query], batch_size: int
    ) -> StoreInProgress:
        ids = [row.passage_id for row in rows] if file.side == "passage" else distinct_ids(rows)
        try:
            return EmbeddingStore.create(
                self.folder / file.subset / PLURAL[file.side],
                ids,
                self._shapes[file.side],
                self._fingerprint,
                {**self._made_with, CONTENT: hash_content(rows)},
                dtype=str(DTYPES[file.side]).removeprefix("torch."),
                batch_rows=batch_size,
            )
        except AnotherStore as error:
            raise DataError(
                f"{self.folder}: holds {PLURAL[file.side]} of {file.subset} from another evaluation, with "
                f"{error.difference}; delete this folder, or choose another output_dir",
                code="stored-vectors-differ",
                path=self.folder,
                difference=error.difference,
            ) from None


def _still_imageless(file: EvaluationRows, bad: Tally, rows: list[int]) -> bool:
    """Whether none of these rows' images can be read now; they are counted in `bad` then."""
    found = [file[row][2] for row in rows]
    if None in found:
        return False  # the loader reads them all again, and they are counted then
    for row in found:
        bad.add(row)
    return True


class _StoredSubset(EncodedSubset):
    def __init__(self, passages: Embeddings, queries: Embeddings, folder: Path, barrier: Barrier) -> None:
        stretch = share_of(len(passages))
        self.pool_rows = torch.arange(len(passages))
        self.query_rows = torch.arange(len(queries))
        self.queries = queries.vectors
        self.share = passages.part(stretch.start, stretch.stop)
        self.positions = torch.arange(stretch.start, stretch.stop)
        self._passages = passages
        self._folder = folder
        self._barrier = barrier

    def index_of_all(self, index: Index) -> Index:
        """The first rank builds it of the mapped store and saves it, and all load it; one of no known kind is built by each."""
        if world_size() == 1:
            index.build(self._passages)
            return index
        if rank() == 0:
            log.info(
                "the first rank builds the index of %d passages, and the other %d wait for it, without a time limit",
                *(len(self._passages), world_size() - 1),
            )
            # Another object: what it holds is not needed here any longer once it is saved.
            built = index.clone(index.device)
            built.build(self._passages)
            built.save(self._folder)
            del built
        self._barrier.wait()
        # On the first rank too: a loaded FAISS index is on the CPU, and all ranks have to find the same.
        loaded = Index.load(self._folder, self._passages, index.device, verify=False)
        self._barrier.wait()
        if rank() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        return loaded
