"""Where the vectors that an evaluation encodes go, and come from when it searches: the interface, and one in memory.

Passages are in half precision, in memory as in an `EmbeddingStore`, so that a run's own test, ret-evaluate and ret-search score
by the same numbers. Queries stay in float32 in all three: they are few, and ret-search has no reason to round one.
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
from ret_lightning.evaluation.batch_limits import limited_batches
from ret_lightning.evaluation.row_counts import RowCounts
from ret_lightning.retrieval import Embeddings, Index, gather_at, share_of

DTYPES: dict[Side, torch.dtype] = {"passage": torch.float16, "query": torch.float32}


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


class EmbeddingSink(ABC):
    """Takes the vectors of an evaluation, batch by batch, and returns them subset by subset; each rank has one.

    A driver calls `begin` (or `start`, where it chooses the batches itself), `add` for each batch, `complete`, and `encoded`
    for each subset.

    Attributes:
        counts: of the rows that were added.
    """

    def __init__(self) -> None:
        self.counts = RowCounts()

    @abstractmethod
    def begin(
        self, files: Sequence[EvaluationRows], batch_size: int, limit: int | float | None = None
    ) -> list[list[list[int]]]:
        """Start an evaluation of these rows, or continue it; all ranks call this together.

        Args:
            files: one of each side of each subset.
            batch_size: rows a batch.
            limit: encode the first so many batches of each file, or that share of them; None: all.

        Returns:
            Of each file the batches that this rank has to encode, each a list of positions in the file.

        Raises:
            ConfigError: if the limit leaves nothing of a file.
        """

    def start(self) -> None:
        """Start an evaluation of the batches that the caller chooses."""
        self.counts.start()

    def add(self, batch: EvaluationBatch, vectors: Tensor) -> None:
        """Take a batch.

        Args:
            batch: B rows.
            vectors: (B, k, d), floating point, on any device.
        """
        self.counts.add(batch)
        self._add(batch, vectors)

    def complete(
        self, subsets: Sequence[EvaluationSubset], device: torch.device, max_bad_fraction: float, tried: bool = False
    ) -> None:
        """Finish after the last batch; all ranks call this together.

        Args:
            subsets: that were encoded.
            device: that collectives run on.
            max_bad_fraction: largest share of the rows of a file that may lack their image.
            tried: whether it is a sanity check, which logs less.

        Raises:
            DataError: if more rows lack their image, or what was stored is torn.
        """
        self._wait()
        self.counts.check(subsets, max_bad_fraction, device, tried)
        self._finish()

    @abstractmethod
    def encoded(self, subset: EvaluationSubset, device: torch.device) -> EncodedSubset:
        """What was encoded of a subset; all ranks call this together, once for each subset.

        Raises:
            ConfigError: if no passage was encoded.
            DataError: if a number is not finite, on all ranks.
        """

    @abstractmethod
    def _add(self, batch: EvaluationBatch, vectors: Tensor) -> None: ...

    @abstractmethod
    def _wait(self) -> None:
        """Wait until all ranks have encoded their batches, however long one of them takes."""

    @abstractmethod
    def _finish(self) -> None:
        """Make what was added ready for `encoded`."""


class MemorySink(EmbeddingSink):
    """Each rank keeps what it encoded. Rows that come twice, from one rank or from several, count once."""

    def __init__(self) -> None:
        super().__init__()
        self._batches: dict[tuple[str, Side], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._broken: dict[tuple[str, Side], list[int]] = defaultdict(list)  # rows that are not finite

    def begin(
        self, files: Sequence[EvaluationRows], batch_size: int, limit: int | float | None = None
    ) -> list[list[list[int]]]:
        """Deal the batches of all rows to the ranks; see `EmbeddingSink.begin`."""
        self.start()
        sizes = [limited_rows(len(rows), batch_size, limit, f"{rows.subset} {PLURAL[rows.side]}") for rows in files]
        return distribute_batches(sizes, batch_size, rank(), world_size())

    def start(self) -> None:
        """Forget what was collected before."""
        super().start()
        self._batches.clear()
        self._broken.clear()

    def encoded(self, subset: EvaluationSubset, device: torch.device) -> EncodedSubset:
        """What was encoded of a subset; see `EmbeddingSink.encoded`."""
        for side, name in (("passage", "pool"), ("query", "queries")):
            _check_finite(self._broken[subset.name, side], device, f"{subset.split}/{subset.name}, {name}")
        rows, vectors = self._own(subset.name, "passage", device)
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
        # Of queries every rank has all: they are few, and each is searched for on every rank.
        own_rows, own_queries = self._own(subset.name, "query", device)
        query_rows = gather_rows(own_rows.to(device), row_counts(own_rows.to(device))).cpu().sort().values
        queries = gather_at(own_queries, torch.searchsorted(query_rows, own_rows), len(query_rows), device)
        return _SubsetInMemory(pool_rows, query_rows, queries, vectors, positions, ids, device)

    def _own(self, subset: str, side: Side, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rows (n,) and vectors (n, k, d) of this rank, each row once over all ranks, ascending."""
        return _only_here(*_joined(self._batches.pop((subset, side), []), DTYPES[side], device), device)

    def _add(self, batch: EvaluationBatch, vectors: Tensor) -> None:
        # Off the GPU at once: the pools of ReT-M2KR are gigabytes.
        rows, vectors = batch.rows.cpu(), vectors.to("cpu", DTYPES[batch.side])
        self._batches[batch.subset, batch.side].append((rows, vectors))
        self._broken[batch.subset, batch.side] += rows[~vectors.isfinite().flatten(1).all(dim=1)].tolist()

    def _wait(self) -> None:
        pass  # the collectives of `encoded` wait

    def _finish(self) -> None:
        pass


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
        """Every rank builds the index, of a copy of the whole pool that its own share then is a part of."""
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
