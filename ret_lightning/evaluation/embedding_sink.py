"""The vectors that an evaluation encodes: what it asks of them, and how a training run keeps them, which is in memory.

Passages are in half precision, in memory as in an `EmbeddingStore`, so that a run's own test, ret-evaluate and ret-search score
by the same numbers. Queries stay in float32 in all three: they are few, and ret-search has no reason to round one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ret_lightning.data.types import EvaluationSubset
from ret_lightning.distributed.collectives import gather_rows, rank, row_counts, world_size
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.retrieval import Embeddings, Index, gather_at, share_of

PASSAGE_DTYPE, QUERY_DTYPE = torch.float16, torch.float32


class EncodedSubset(ABC):
    """What was encoded of one subset; all ranks have one of the same passages and queries.

    Attributes:
        pool_rows: (N,) int64, which passages were encoded, positions in the subset's pool, ascending.
        query_rows: (Nq,) int64, which queries were, likewise.
        queries: their (Nq, k, d) vectors, float32, on the CPU.
        share: this rank's passages, float16, on the CPU; each of the N is on one rank.
        positions: (n,) int64, where these stand in `pool_rows`, ascending.
    """

    pool_rows: Tensor
    query_rows: Tensor
    queries: Tensor
    share: Embeddings
    positions: Tensor

    @abstractmethod
    def index_of_all(self, index: Index) -> Index:
        """An index as the given one, of all N passages, ready to be searched on this rank; called on all ranks together."""


class Vectors(Protocol):
    """Where the vectors of an evaluation go, and where they come from when it searches."""

    def start(self) -> None:
        """Before the first batch."""

    def add(self, loader: int, rows: Tensor, vectors: Tensor, imageless: Sequence[int] = ()) -> None:
        """Takes a batch.

        Args:
            loader: 2 i for the pool of subset i, 2 i + 1 for its queries.
            rows: (B,) int64, positions in these.
            vectors: (B, k, d), floating point, on any device.
            imageless: those of the rows that go without their image, since it could not be read.
        """

    def complete(self) -> None:
        """After the last batch; called on all ranks together."""

    def subset(self, number: int, subset: EvaluationSubset, device: torch.device) -> EncodedSubset:
        """What was encoded of a subset, its number counted from 0; called on all ranks together, once a subset.

        Raises ConfigError where nothing was, and DataError where a number is not finite; on all ranks. `device` is where these
        meet.
        """


class VectorsInMemory:
    """Each rank keeps what it encoded. Rows that come twice, from one rank or from several, count once."""

    def __init__(self) -> None:
        self._batches: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._broken: dict[int, list[int]] = defaultdict(list)  # rows that are not finite, by loader

    def start(self) -> None:
        """Forgets what was collected before."""
        self._batches.clear()
        self._broken.clear()

    def add(self, loader: int, rows: Tensor, vectors: Tensor, imageless: Sequence[int] = ()) -> None:
        """See `Vectors`. Off the GPU at once: the pools of ReT-M2KR are gigabytes."""
        rows, vectors = rows.cpu(), vectors.to("cpu", PASSAGE_DTYPE if loader % 2 == 0 else QUERY_DTYPE)
        self._batches[loader].append((rows, vectors))
        self._broken[loader] += rows[~vectors.isfinite().flatten(1).all(dim=1)].tolist()

    def complete(self) -> None:
        """Nothing is left to do."""

    def subset(self, number: int, subset: EvaluationSubset, device: torch.device) -> EncodedSubset:
        """See `Vectors`."""
        for loader, side in ((2 * number, "pool"), (2 * number + 1, "queries")):
            _check_finite(self._broken[loader], device, f"{subset.split}/{subset.name}, {side}")
        rows, vectors = _only_here(*_joined(self._batches.pop(2 * number, []), PASSAGE_DTYPE, device), device)
        pool_rows = gather_rows(rows.to(device), row_counts(rows.to(device))).cpu().sort().values
        if len(pool_rows) == 0:
            raise ConfigError(
                f"{subset.split}/{subset.name}: no passage was encoded; is trainer.limit_val_batches 0?",
                code="no-passage-encoded",
                split=subset.split,
                subset=subset.name,
            )
        ids = [subset.pool[row].passage_id for row in pool_rows.tolist()]
        positions = torch.searchsorted(pool_rows, rows)
        own = _only_here(*_joined(self._batches.pop(2 * number + 1, []), QUERY_DTYPE, device), device)
        # Of queries every rank has all: they are few, and each is searched for on every rank.
        query_rows = gather_rows(own[0].to(device), row_counts(own[0].to(device))).cpu().sort().values
        queries = gather_at(own[1], torch.searchsorted(query_rows, own[0]), len(query_rows), device)
        return _SubsetInMemory(pool_rows, query_rows, queries, vectors, positions, ids, device)


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
        self.share = Embeddings([ids[position] for position in positions.tolist()], vectors)
        self.positions = positions
        self._ids = ids
        self._device = device

    def index_of_all(self, index: Index) -> Index:
        """Every rank builds it, of a copy of the whole pool that its own share then is a part of."""
        vectors = gather_at(self.share.vectors, self.positions, len(self._ids), self._device)
        whole, stretch = Embeddings(self._ids, vectors), share_of(len(self._ids))
        self.share = whole.part(stretch.start, stretch.stop)
        self.positions = torch.arange(stretch.start, stretch.stop)
        index.build(whole)
        return index


def _joined(batches: list[tuple[Tensor, Tensor]], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows (n,) and vectors (n, k, d) of a loader, each row once, ascending; n may be 0 on some of the ranks."""
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


def _check_finite(broken: list[int], device: torch.device, where: str) -> None:
    """Raises DataError on all ranks where one of them has rows that are not finite."""
    rows = torch.tensor(broken, dtype=torch.int64, device=device)
    counts = row_counts(rows)
    if any(counts):
        rows = gather_rows(rows, counts).unique()
        raise DataError(
            f"{where}: the model encodes {len(rows)} rows to numbers that are not finite, the first is row {int(rows[0])} "
            "(from 0), so nothing can be ranked; begin from an earlier checkpoint, with a lower learning rate or a higher "
            "trainer.precision",
            code="vectors-not-finite",
            rows=len(rows),
            row=int(rows[0]),
        )


def _only_here(rows: Tensor, vectors: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Without the rows that an earlier rank has too: a padded sampler gives a row to several."""
    if world_size() == 1:
        return rows, vectors
    counts = row_counts(rows.to(device))
    earlier = gather_rows(rows.to(device), counts)[: sum(counts[: rank()])].cpu()
    own = ~torch.isin(rows, earlier)
    return (rows, vectors) if own.all() else (rows[own], vectors[own])
