"""Store the vectors of an evaluation on disk, so that an interrupted evaluation can be resumed.

    folder/<subset>/passages/   an `EmbeddingStore` in half precision
    folder/<subset>/queries/    an `EmbeddingStore` in float32
    folder/<subset>/index/      an approximate index, from when rank 0 has built it until all ranks have loaded it

All ranks write to the same stores, each its own parts, and memory-map them when all rows are encoded.
"""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
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
from ret_lightning.evaluation.embedding_sink import DTYPES, EmbeddingSink, EncodedSubset, limit_rows
from ret_lightning.evaluation.encode_rows import check_finite
from ret_lightning.models.checkpoint.fingerprint import fingerprint
from ret_lightning.models.two_towers import TwoTowers
from ret_lightning.retrieval import Embeddings, EmbeddingStore, Index, rank_slice
from ret_lightning.retrieval.store.embedding_store import StoreInProgress, StoreWriter
from ret_lightning.retrieval.store.store_plan import StoreMismatch

log = logging.getLogger(__name__)

INDEX = "index"


@dataclass
class _StoreFile:
    """The store of a candidate pool or query file, while this rank writes its part."""

    rows: EvaluationRows
    store: StoreInProgress
    was_finished: bool
    writer: StoreWriter
    written: int = 0  # number of rows of `writer.rows`


class StoredSink(EmbeddingSink):
    """Stores vectors on disk; the rankings are the same as with a `MemorySink`.

    Args:
        folder: folder of the stores.
        retriever: the model that encodes.
        split: split of the rows.
        made_with: further settings that affect the vectors, as JSON values. A store that was started with other
            settings is refused.

    Attributes:
        before: (subset, side) to the number of rows that were encoded before this process started; set by `begin`.
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
        self._files: dict[tuple[str, Side], _StoreFile] = {}
        self._embeddings: dict[tuple[str, Side], Embeddings] = {}
        self._barrier: Barrier  # created by `begin`, on all ranks together

    def begin(
        self, files: Sequence[EvaluationRows], batch_size: int, limit: int | float | None = None
    ) -> list[list[list[int]]]:
        """Create the stores, or open existing ones; all ranks call this together, once.

        A part with rows that were encoded without their images is encoded again if any of these images can be read now.

        Args:
            files: the rows of each side of each subset.
            batch_size: number of rows per batch.
            limit: number or fraction of the batches of each file to encode; None means all.

        Returns:
            For each file, the batches that this rank has to encode, each a list of positions in the file.

        Raises:
            DataError: if a store was made with another checkpoint, other rows or other settings.
            ConfigError: if the limit is less than one batch of a file, or the ranks do not share the folder.
        """
        self.counts.start()
        self._barrier = Barrier()
        self._create_shared_folder()
        counts = [limit_rows(len(f), batch_size, limit, f"{f.subset} {PLURAL[f.side]}") for f in files]
        stores: list[StoreInProgress] = []
        for turn in range(2):  # rank 0 creates the stores, then the other ranks open them
            if (rank() == 0) == (turn == 0):
                stores = [self._store(f, f.rows[:count], batch_size) for f, count in zip(files, counts, strict=True)]
            self._barrier.wait()
        if rank() == 0:  # remains of an evaluation that was killed while searching
            for file in files:
                shutil.rmtree(self.folder / file.subset / INDEX, ignore_errors=True)
        ranks, bad = world_size(), [Tally() for _ in files]
        for number, (file, store) in enumerate(zip(files, stores, strict=True)):
            # Each file starts with another rank, as in `data.sampling.batch_samplers.distribute_batches`.
            writer = store.writer(
                (rank() - number) % ranks, ranks, partial(_are_images_still_missing, file, bad[number])
            )
            self._files[file.subset, file.side] = _StoreFile(file, store, store.finished, writer)
        missing = self._barrier.all_reduce_sum([len(file.writer.rows) for file in self._files.values()])
        stored = [count - left for count, left in zip(counts, missing, strict=True)]
        self.before = dict(zip(self._files, stored, strict=True))
        if not any(stored):
            log.info("embeddings are stored in %s; to resume after an interruption, repeat the command", self.folder)
        for file, encoded, count, own_bad in zip(files, stored, counts, bad, strict=True):
            self.counts.add_earlier_rows(file.subset, file.side, encoded, own_bad)
            if encoded:
                log.info("%s: %d of %d %s are already encoded", file.subset, encoded, count, PLURAL[file.side])
        return [split_evaluation_batches(file.writer.rows, batch_size) for file in self._files.values()]

    def start(self) -> None:
        """Do nothing: `begin` has started the counts, and stored vectors are kept."""

    def get_encoded(self, subset: EvaluationSubset, device: torch.device) -> EncodedSubset:
        """Return the stored vectors of a subset; all ranks call this together, once per subset.

        Args:
            subset: the subset.
            device: ignored.
        """
        passages, queries = (self._embeddings[subset.name, side] for side in SIDES)
        return _StoredSubset(passages, queries, self.folder / subset.name / INDEX, self._barrier)

    def _add(self, batch: EvaluationBatch, vectors: Tensor) -> None:
        """Write a batch; rows must be added in the order of `begin`.

        Raises:
            DataError: if a vector is not finite; the error has the location of the row.
        """
        if batch.is_repeated:
            return
        file = self._files[batch.subset, batch.side]
        expected = file.writer.rows[file.written : file.written + len(batch)]
        if batch.rows.tolist() != expected:
            raise RuntimeError(f"{file.store.folder}: expected rows {expected}, got {batch.rows.tolist()}")
        check_finite(file.rows, batch, vectors, " or, if the precision is lower, trainer.precision=32-true")
        file.writer.add(vectors, provisional=batch.imageless)
        file.written += len(batch)

    def _wait(self) -> None:
        self._barrier.wait()

    def _finish(self) -> None:
        if rank() == 0:
            for file in self._files.values():
                if file.was_finished:  # by an earlier process: its content is verified
                    EmbeddingStore.open(file.store.folder, self._fingerprint)
                file.store.finish()
        self._barrier.wait()
        self._embeddings = {
            key: EmbeddingStore.open(file.store.folder, verify=False).embeddings for key, file in self._files.items()
        }

    def remove(self) -> None:
        """Delete the stores; all ranks call this together, after releasing all vectors of the sink.

        On NFS, a deleted file that is still mapped remains under another name, and so does its folder.
        """
        self._files, self._embeddings = {}, {}
        gc.collect()  # closes maps whose tensors are in reference cycles
        self._barrier.wait()
        if rank() != 0:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            log.warning(
                "%s: some embeddings could not be deleted; they are no longer needed, delete the folder manually",
                self.folder,
            )

    def _create_shared_folder(self) -> None:
        """Create the folder on rank 0, and check that the other ranks share it.

        A rank on another machine may have another disk or, if SLURM starts it by a separate command, another value of
        `${now}`.
        """
        if world_size() == 1:
            return
        marker = self.folder / self._barrier.broadcast(f".seen-{uuid4().hex}")
        if rank() == 0:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        self._barrier.wait()
        has_no_marker = self._barrier.all_reduce_sum(
            [int(number == rank() and not marker.exists()) for number in range(world_size())]
        )
        output = self._barrier.broadcast(str(self.folder.parent))
        if rank() == 0:
            marker.unlink()
        if any(has_no_marker):
            raise ConfigError(
                f"rank {has_no_marker.index(1)} does not see output_dir={output}; set output_dir to a folder on a disk that "
                "all machines share",
                code="output-dir-not-shared",
                path=output,
                rank=has_no_marker.index(1),
            )

    def _store(
        self, file: EvaluationRows, rows: Sequence[Passage] | Sequence[Query], batch_size: int
    ) -> StoreInProgress:
        if file.side == "passage":
            ids = [row.passage_id for row in cast("Sequence[Passage]", rows)]
        else:
            ids = distinct_ids(cast("Sequence[Query]", rows))
        dtype: Any = str(DTYPES[file.side]).removeprefix("torch.")
        try:
            return EmbeddingStore.create(
                self.folder / file.subset / PLURAL[file.side],
                ids,
                self._shapes[file.side],
                self._fingerprint,
                {**self._made_with, CONTENT: hash_content(rows)},
                dtype=dtype,
                batch_rows=batch_size,
            )
        except StoreMismatch as error:
            raise DataError(
                f"{self.folder}: contains {PLURAL[file.side]} of {file.subset} from another evaluation, with "
                f"{error.difference}; delete this folder, or choose another output_dir",
                code="stored-vectors-differ",
                path=self.folder,
                difference=error.difference,
            ) from None


def _are_images_still_missing(file: EvaluationRows, bad: Tally, rows: list[int]) -> bool:
    """Return whether none of the rows' images can be read now; if so, add the rows to `bad`."""
    found = [file[row][2] for row in rows]
    unread = [row for row in found if row is not None]
    if len(unread) < len(found):
        return False  # the loader reads all of them again and counts them
    for row in unread:
        bad.add(row)
    return True


class _StoredSubset(EncodedSubset):
    def __init__(self, passages: Embeddings, queries: Embeddings, folder: Path, barrier: Barrier) -> None:
        shard = rank_slice(len(passages))
        self.pool_rows = torch.arange(len(passages))
        self.query_rows = torch.arange(len(queries))
        self.queries = queries.vectors
        self.share = passages.part(shard.start, shard.stop)
        self.positions = torch.arange(shard.start, shard.stop)
        self._passages = passages
        self._folder = folder
        self._barrier = barrier

    def build_full_index(self, index: Index) -> Index:
        """Build the index on rank 0 from the mapped store and load it on all ranks; all ranks call this together.

        A single process builds it directly.
        """
        if world_size() == 1:
            index.build(self._passages)
            return index
        if rank() == 0:
            log.info(
                "rank 0 builds the index of %d passages; the other %d ranks wait without a time limit",
                *(len(self._passages), world_size() - 1),
            )
            # A clone, which is freed as soon as it is saved.
            built = index.clone(index.device)
            built.build(self._passages)
            built.save(self._folder)
            del built
        self._barrier.wait()
        # Rank 0 loads it as well: a loaded FAISS index is on the CPU, and all ranks must return the same results.
        loaded = Index.load(self._folder, self._passages, index.device, verify=False)
        self._barrier.wait()
        if rank() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        return loaded
