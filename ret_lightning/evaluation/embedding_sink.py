"""Storage of encoded vectors during an evaluation: the interface, and an implementation in memory.

Passages are stored in half precision, in memory as in an `EmbeddingStore`, so that the test of a run, ret-evaluate and
ret-search compute the same scores. Queries stay in float32: they are few, and ret-search does not round them either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ret_lightning.data.batch import EvaluationBatch
from ret_lightning.data.sampling.batch_samplers import distribute_batches
from ret_lightning.data.torch_datasets import EvaluationRows
from ret_lightning.data.types import PLURAL, EvaluationSubset, Side
from ret_lightning.distributed.collectives import gather_rows, rank, row_counts, world_size
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.evaluation.batch_limits import limit_batches
from ret_lightning.evaluation.row_counts import RowCounts
from ret_lightning.retrieval import Embeddings, Index, gather_by_position, rank_slice

DTYPES: dict[Side, torch.dtype] = {"passage": torch.float16, "query": torch.float32}


class EncodedSubset(ABC):
    """The encoded vectors of a subset; all ranks have one for the same passages and queries.

    Attributes:
        pool_rows: (N,) int64, positions of the encoded passages in the candidate pool, ascending.
        query_rows: (Nq,) int64, positions of the encoded queries in the subset, ascending.
        queries: (Nq, k, d) float32, vectors of the queries, on the CPU.
        share: this rank's passages, float16, on the CPU; each of the N passages is on one rank.
        positions: (n,) int64, positions of this rank's passages in `pool_rows`, ascending.
    """

    pool_rows: Tensor
    query_rows: Tensor
    queries: Tensor
    share: Embeddings
    positions: Tensor

    @abstractmethod
    def build_full_index(self, index: Index) -> Index:
        """Build an index of all N passages for searching on this rank; all ranks call this together.

        Args:
            index: an index with the settings to use.

        Returns:
            The index, which may be another object than the given one.
        """


class EmbeddingSink(ABC):
    """Stores the vectors of an evaluation per batch, and returns them per subset; each rank has one.

    The caller calls `begin` (or `start`, if it chooses the batches itself), `add` for each batch, `complete`, and
    `get_encoded` for each subset.

    Attributes:
        counts: counts of bad images and truncated texts among the added rows.
    """

    def __init__(self) -> None:
        self.counts = RowCounts()

    @abstractmethod
    def begin(
        self, files: Sequence[EvaluationRows], batch_size: int, limit: int | float | None = None
    ) -> list[list[list[int]]]:
        """Start or continue an evaluation of the given rows; all ranks call this together.

        Args:
            files: the rows of each side of each subset.
            batch_size: number of rows per batch.
            limit: number or fraction of the batches of each file to encode; None means all.

        Returns:
            For each file, the batches that this rank has to encode, each a list of positions in the file.

        Raises:
            ConfigError: if the limit is less than one batch of a file.
        """

    def start(self) -> None:
        """Start an evaluation whose batches the caller chooses."""
        self.counts.start()

    def add(self, batch: EvaluationBatch, vectors: Tensor) -> None:
        """Add a batch.

        Args:
            batch: the batch, with B rows.
            vectors: (B, k, d), floating point, on any device.
        """
        self.counts.add(batch)
        self._add(batch, vectors)

    def complete(
        self,
        subsets: Sequence[EvaluationSubset],
        device: torch.device,
        max_bad_fraction: float,
        is_sanity_check: bool = False,
    ) -> None:
        """Finish after the last batch; all ranks call this together.

        Args:
            subsets: the encoded subsets.
            device: the device of the collectives.
            max_bad_fraction: maximum fraction of the rows of a file whose image cannot be read.
            is_sanity_check: whether this is a sanity check, which logs less.

        Raises:
            DataError: if too many images cannot be read, or stored vectors are damaged.
        """
        self._wait()
        self.counts.check(subsets, max_bad_fraction, device, is_sanity_check)
        self._finish()

    @abstractmethod
    def get_encoded(self, subset: EvaluationSubset, device: torch.device) -> EncodedSubset:
        """Return the encoded vectors of a subset; all ranks call this together, once per subset.

        Args:
            subset: the subset.
            device: the device of the collectives.

        Raises:
            ConfigError: if no passage was encoded.
            DataError: on all ranks, if a vector is not finite.
        """

    @abstractmethod
    def _add(self, batch: EvaluationBatch, vectors: Tensor) -> None: ...

    @abstractmethod
    def _wait(self) -> None:
        """Wait until all ranks have encoded their batches, without a time limit."""

    @abstractmethod
    def _finish(self) -> None:
        """Prepare the added vectors for `get_encoded`."""


class MemorySink(EmbeddingSink):
    """Keeps the vectors that this rank encodes in memory; rows that are added several times are counted once."""

    def __init__(self) -> None:
        super().__init__()
        self._batches: dict[tuple[str, Side], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._nonfinite_rows: dict[tuple[str, Side], list[int]] = defaultdict(list)  # rows with non-finite vectors

    def begin(
        self, files: Sequence[EvaluationRows], batch_size: int, limit: int | float | None = None
    ) -> list[list[list[int]]]:
        """Distribute the batches of all rows over the ranks; all ranks call this together.

        Args:
            files: the rows of each side of each subset.
            batch_size: number of rows per batch.
            limit: number or fraction of the batches of each file to encode; None means all.

        Returns:
            For each file, the batches that this rank has to encode, each a list of positions in the file.

        Raises:
            ConfigError: if the limit is less than one batch of a file.
        """
        self.start()
        sizes = [limit_rows(len(rows), batch_size, limit, f"{rows.subset} {PLURAL[rows.side]}") for rows in files]
        return distribute_batches(sizes, batch_size, rank(), world_size())

    def start(self) -> None:
        """Discard the vectors of the previous evaluation."""
        super().start()
        self._batches.clear()
        self._nonfinite_rows.clear()

    def get_encoded(self, subset: EvaluationSubset, device: torch.device) -> EncodedSubset:
        """Return the encoded vectors of a subset; all ranks call this together, once per subset.

        Args:
            subset: the subset.
            device: the device of the collectives.

        Raises:
            ConfigError: if no passage was encoded.
            DataError: on all ranks, if a vector is not finite.
        """
        names: dict[Side, str] = {"passage": "candidate pool", "query": "queries"}
        for side, name in names.items():
            _check_finite(self._nonfinite_rows[subset.name, side], device, f"{subset.split}/{subset.name}, {name}")
        rows, vectors = self._take_own_rows(subset.name, "passage", device)
        pool_rows = gather_rows(rows.to(device), row_counts(rows.to(device))).cpu().sort().values
        if len(pool_rows) == 0:
            raise ConfigError(
                f"{subset.split}/{subset.name}: no passage was encoded; set trainer.limit_{subset.split}_batches to 1 or more",
                code="no-passage-encoded",
                split=subset.split,
                subset=subset.name,
            )
        ids = [subset.pool[row].passage_id for row in pool_rows.tolist()]
        positions = torch.searchsorted(pool_rows, rows)
        # Every rank gets all queries: they are few, and every rank searches for each of them.
        own_rows, own_queries = self._take_own_rows(subset.name, "query", device)
        query_rows = gather_rows(own_rows.to(device), row_counts(own_rows.to(device))).cpu().sort().values
        queries = gather_by_position(own_queries, torch.searchsorted(query_rows, own_rows), len(query_rows), device)
        return _SubsetInMemory(pool_rows, query_rows, queries, vectors, positions, ids, device)

    def _take_own_rows(self, subset: str, side: Side, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the positions (n,) and vectors (n, k, d) of this rank, ascending; each row is on one rank."""
        return _drop_duplicates(*_concatenate(self._batches.pop((subset, side), []), DTYPES[side], device), device)

    def _add(self, batch: EvaluationBatch, vectors: Tensor) -> None:
        # Moved off the GPU immediately: the candidate pools of ReT-M2KR are several gigabytes.
        rows, vectors = batch.rows.cpu(), vectors.to("cpu", DTYPES[batch.side])
        self._batches[batch.subset, batch.side].append((rows, vectors))
        self._nonfinite_rows[batch.subset, batch.side] += rows[~vectors.isfinite().flatten(1).all(dim=1)].tolist()

    def _wait(self) -> None:
        pass  # the collectives of `get_encoded` wait

    def _finish(self) -> None:
        pass


def limit_rows(count: int, batch_size: int, limit: int | float | None, what: str = "rows") -> int:
    """Return the number of rows within a limit of batches; it does not depend on the number of ranks.

    Args:
        count: number of rows.
        batch_size: number of rows per batch.
        limit: a number of batches, or a fraction of them, as in `trainer.limit_test_batches`; None or 1.0 means all.
        what: what the rows are, for messages.

    Raises:
        ConfigError: if the limit is a fraction of less than one batch.
    """
    batches = limit_batches(-(-count // batch_size), limit, "the limit of batches", what)
    return min(count, batches * batch_size)


class _SubsetInMemory(EncodedSubset):
    def __init__(
        self,
        pool_rows: Tensor,
        query_rows: Tensor,
        queries: Tensor,
        vectors: Tensor,
        positions: Tensor,
        ids: list[str],
        device: torch.device,
    ) -> None:
        self.pool_rows = pool_rows
        self.query_rows = query_rows
        self.queries = queries
        self.share = Embeddings(tuple(ids[position] for position in positions.tolist()), vectors)
        self.positions = positions
        self._ids = ids
        self._device = device

    def build_full_index(self, index: Index) -> Index:
        """Build the index from a copy of the whole candidate pool, on every rank; all ranks call this together.

        This rank's share then refers to the copy.
        """
        vectors = gather_by_position(self.share.vectors, self.positions, len(self._ids), self._device)
        whole, shard = Embeddings(tuple(self._ids), vectors), rank_slice(len(self._ids))
        self.share = whole.part(shard.start, shard.stop)
        self.positions = torch.arange(shard.start, shard.stop)
        index.build(whole)
        return index


def _concatenate(
    batches: list[tuple[Tensor, Tensor]], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the sorted, distinct positions (n,) and vectors (n, k, d) of a file; n may be 0 on some ranks."""
    rows = torch.cat([rows for rows, _ in batches]) if batches else torch.zeros(0, dtype=torch.int64)
    vectors = torch.cat([vectors for _, vectors in batches]) if batches else torch.zeros(0, dtype=dtype)
    if world_size() > 1:
        shape = torch.tensor(vectors.shape[1:] or (0, 0), device=device)
        torch.distributed.all_reduce(shape, torch.distributed.ReduceOp.MAX)
        vectors = vectors.view(len(rows), *shape.tolist())
    if (rows[1:] > rows[:-1]).all():
        return rows, vectors
    rows, order = rows.sort(stable=True)
    first = torch.ones_like(rows, dtype=torch.bool)
    first[1:] = rows[1:] != rows[:-1]
    return rows[first], vectors[order[first]]


def _check_finite(rows_on_rank: list[int], device: torch.device, where: str) -> None:
    """Raise DataError on all ranks if any of them has rows that are not finite."""
    rows = torch.tensor(rows_on_rank, dtype=torch.int64, device=device)
    counts = row_counts(rows)
    if any(counts):
        rows = gather_rows(rows, counts).unique()
        raise DataError(
            f"{where}: non-finite vectors of {len(rows)} rows, the first is row {int(rows[0])} (from 0); resume from an "
            "earlier checkpoint with a lower learning rate or a higher trainer.precision",
            code="vectors-not-finite",
            rows=len(rows),
            row=int(rows[0]),
        )


def _drop_duplicates(rows: Tensor, vectors: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Drop the rows that an earlier rank also has: a padded sampler passes a row to several ranks."""
    if world_size() == 1:
        return rows, vectors
    counts = row_counts(rows.to(device))
    earlier = gather_rows(rows.to(device), counts)[: sum(counts[: rank()])].cpu()
    own = ~torch.isin(rows, earlier)
    return (rows, vectors) if own.all() else (rows[own], vectors[own])
