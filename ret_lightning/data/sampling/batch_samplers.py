"""Batch samplers for distributed training and evaluation: each rank gets its share of the same global batches."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
from torch.utils.data import Sampler

from ret_lightning.data.epoch_position import Position, Span
from ret_lightning.data.readers.row_files import RawRow
from ret_lightning.data.sampling.mixture import RowMixture

T = TypeVar("T")


class SampledRow(NamedTuple):
    """One sampled row of an epoch, as a sampler passes it to the dataset.

    Attributes:
        epoch: number of the epoch, from 0; random augmentation depends on it.
        row: number of the row, or the row itself if files are streamed.
        copy: number of the repetition, from 0, of a row that is sampled several times per epoch.
    """

    epoch: int
    row: int | RawRow
    copy: int = 0

    def identity(self) -> tuple[int, ...]:
        """Return the integers that seed the random operations on this sample; they are equal on all ranks and workers."""
        row = (self.row.file, self.row.position) if isinstance(self.row, RawRow) else (self.row,)
        return (self.epoch, *row, self.copy)


class EpochBatches(Sampler[list[SampledRow]]):
    """A batch sampler that yields this rank's share of the global batches of an epoch.

    A global batch has `batch_size * world_size` rows, and each rank takes a contiguous slice of it. W ranks with batches of
    size B therefore see the same rows as one rank with batches of size W * B. The rows of a smaller last batch are
    distributed evenly. A batch with fewer rows than ranks is dropped, because a rank without rows cannot run the step.

    After `resume`, the epoch of the position yields the remaining samples. If the batch size or the number of ranks has
    changed, the remaining samples are split into batches of the new size, in the order of the epoch. They include the
    samples that the earlier size dropped.

    Args:
        batch_size: rows per batch and rank, at least 1.
        seed: seed of the order.
        rank: rank of this process, in [0, world_size).
        world_size: number of ranks.
    """

    def __init__(self, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.position = Position()
        self.sampler = self  # Lightning calls `batch_sampler.sampler.set_epoch`

    @property
    def global_size(self) -> int:
        """Rows of a full batch over all ranks."""
        return self.batch_size * self.world_size

    @property
    def size(self) -> tuple[int, int]:
        """Number of ranks, and rows per rank."""
        return self.world_size, self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order; Lightning calls this at the start of each epoch."""
        self.epoch = epoch

    def resume(self, position: Position) -> None:
        """Skip the samples that were served before a position, in the epoch of the position only."""
        self.position = position

    def batches_per_epoch(self, ranks: int, batch_size: int) -> int | None:
        """Return the number of batches of an epoch that is not resumed.

        Args:
            ranks: number of ranks.
            batch_size: rows per batch and rank.

        Returns:
            The number of batches; None if it is unknown.
        """
        return None

    def served_spans(self, epoch: int) -> list[Span]:
        """Return the batches that an epoch served before it was resumed; empty for any other epoch."""
        return [span for span in self.position.spans if span.batches] if epoch == self.position.epoch else []

    @property
    def has_mixed_batch_sizes(self) -> bool:
        """Whether the current epoch has batches of several sizes."""
        return bool(self._earlier_spans(self.epoch)[0])

    def __iter__(self) -> Iterator[list[SampledRow]]:
        return self._own_batches(self.epoch)  # binds the current epoch now, not when the first batch is requested

    def _own_batches(self, epoch: int) -> Iterator[list[SampledRow]]:
        # A generator: a loader with workers creates one iterator that it never uses.
        for batch in self.global_batches(epoch):
            yield self.share(batch)

    def global_batches(self, epoch: int) -> Iterator[Sequence[SampledRow]]:
        """Yield the remaining global batches of an epoch; each has at least one row per rank."""
        earlier, served = self._earlier_spans(epoch)
        samples = self._samples(epoch)
        for span in earlier:
            samples = self._remaining(epoch, samples, span)
        return islice(_drop_small(self._split(epoch, samples, self.global_size), self.world_size), served, None)

    def _earlier_spans(self, epoch: int) -> tuple[list[Span], int]:
        """Return the spans of an earlier batch size, and the number of batches served since with the current size."""
        spans = self.served_spans(epoch)
        served = spans.pop().batches if spans and spans[-1].size == self.size else 0
        return spans, served

    @abstractmethod
    def _samples(self, epoch: int) -> Any:
        """Return all samples of an epoch, in order."""

    @abstractmethod
    def _split(self, epoch: int, samples: Any, size: int) -> Iterator[Sequence[SampledRow]]:
        """Split samples into batches of `size` rows; some may be smaller."""

    @abstractmethod
    def _remaining(self, epoch: int, samples: Any, span: Span) -> Any:
        """Return the samples, in order, that are not in the batches of a span."""

    def _served(self, epoch: int, samples: Any, span: Span) -> Iterator[Sequence[SampledRow]]:
        return islice(_drop_small(self._split(epoch, samples, span.ranks * span.batch_size), span.ranks), span.batches)

    def share(self, batch: Sequence[T]) -> list[T]:
        """Return this rank's slice of a global batch; the first ranks take one more row if it does not divide evenly."""
        each, more = divmod(len(batch), self.world_size)
        start = self.rank * each + min(self.rank, more)
        return list(batch[start : start + each + (self.rank < more)])


class GlobalBatches(EpochBatches):
    """A batch sampler over a known number of rows.

    Args:
        rows: number of rows.
        batch_size: rows per batch and rank, at least 1.
        seed: seed of the order.
        rank: rank of this process, in [0, world_size).
        world_size: number of ranks.
        shuffle: True: a new random order per epoch; False: the order of the file.
        mixture: how often each row is sampled per epoch, and its subset; None: each row once.
        one_subset: whether all rows of a batch belong to one subset; the batches of all subsets are shuffled together.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        mixture: RowMixture | None = None,
        one_subset: bool = False,
    ) -> None:
        super().__init__(batch_size, seed, rank, world_size)
        self.rows = rows
        self.shuffle = shuffle
        self.mixture = mixture
        self.one_subset = one_subset
        self._length: tuple[int, Position, int] | None = None

    def __len__(self) -> int:
        """Return the number of batches of the epoch, including those that were served before it was resumed."""
        if not self.has_mixed_batch_sizes:
            return self.batches_per_epoch(*self.size)
        if self._length is None or self._length[:2] != (self.epoch, self.position):
            samples = self._samples(self.epoch)
            for span in self.served_spans(self.epoch):
                samples = self._remaining(self.epoch, samples, span)
            remaining = _count_batches([len(group) for group in samples.groups], *self.size)
            self._length = (self.epoch, self.position, self.position.batches + remaining)
        return self._length[2]

    def batches_per_epoch(self, ranks: int, batch_size: int) -> int:
        """Return the number of batches of an epoch that is not resumed.

        Args:
            ranks: number of ranks.
            batch_size: rows per batch and rank.
        """
        sizes = [self.rows] if self.mixture is None else self.mixture.sizes
        return _count_batches(sizes if self.one_subset else [sum(sizes)], ranks, batch_size)

    def _samples(self, epoch: int) -> _NumberedSamples:
        random = np.random.default_rng((self.seed, epoch))
        has_repeats = False
        groups = [np.arange(self.rows)]
        if self.mixture is not None:
            copies = self.mixture.copies(self.seed, epoch)
            has_repeats = bool(copies.max(initial=0) > 1)
            groups = self._groups(_number_samples(copies))
        if self.shuffle:
            groups = [random.permutation(group) for group in groups]
        return _NumberedSamples(groups, has_repeats, random)

    def _groups(self, numbers: np.ndarray) -> list[np.ndarray]:
        if not self.one_subset:
            return [numbers]
        assert self.mixture is not None  # with `one_subset`
        codes = self.mixture.codes[numbers % self.rows]
        return [numbers[codes == code] for code in np.unique(codes)]

    def _split(self, epoch: int, samples: _NumberedSamples, size: int) -> Iterator[Sequence[SampledRow]]:
        turns = np.repeat(np.arange(len(samples.groups)), [-(-len(group) // size) for group in samples.groups])
        if self.shuffle and len(samples.groups) > 1:
            turns = samples.random.permutation(turns)
        row_of = (lambda number: number % self.rows) if samples.has_repeats else None
        batches = [_split_group(group, size, row_of) for group in samples.groups]
        for turn in turns:
            yield [SampledRow(epoch, number % self.rows, number // self.rows) for number in next(batches[turn])]

    def _remaining(self, epoch: int, samples: _NumberedSamples, span: Span) -> _NumberedSamples:
        served = [
            cast(int, sample.row) + sample.copy * self.rows
            for batch in self._served(epoch, samples, span)
            for sample in batch
        ]
        return replace(samples, groups=[group[~np.isin(group, served)] for group in samples.groups])


@dataclass(frozen=True)
class _NumberedSamples:
    """The samples of an epoch as integers, `row + copy * rows`, because there may be millions of them.

    Attributes:
        groups: (samples,) int64 each; all samples of a batch are from one group.
        has_repeats: whether a row may be sampled more than once.
        random: generator of the order of the groups' batches.
    """

    groups: list[np.ndarray]
    has_repeats: bool
    random: np.random.Generator


def split_evaluation_batches(rows: Iterable[int], batch_size: int) -> list[list[int]]:
    """Split the rows of an evaluation file into batches that do not depend on the number of ranks.

    The last bits of a row's embedding depend on the other rows of its batch. Batches are therefore defined on the whole file,
    and each rank gets whole batches: a row has the same embedding on any number of ranks and after an interruption.

    Args:
        rows: row numbers to include, ascending; may be a part of the file.
        batch_size: maximum number of rows per batch.

    Returns:
        The batches in order. Batch b has the included rows of `batch_size * b` to `batch_size * (b + 1) - 1`; empty batches
        are omitted.
    """
    return [list(batch) for _, batch in groupby(rows, key=lambda row: row // batch_size)]


def distribute_batches(
    sizes: Sequence[int], batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[list[int]]]:
    """Distribute the evaluation batches of several files over the ranks, and return those of one rank.

    File i starts at rank i modulo `world_size`, so that files with a single batch are spread over the ranks.

    Args:
        sizes: number of rows of each file.
        batch_size: maximum number of rows per batch.
        rank: rank to return the batches of, in [0, world_size).
        world_size: number of ranks.

    Returns:
        The rank's batches of each file, each a list of row numbers.
    """
    whole = [split_evaluation_batches(range(size), batch_size) for size in sizes]
    return [batches[(rank - file) % world_size :: world_size] for file, batches in enumerate(whole)]


def fill_idle_rank(batches: list[list[list[int]]]) -> list[list[list[int]]]:
    """Return the batches of a rank, with the first row of the first file if the rank has no batch at all.

    Lightning skips the evaluation loop on a rank without batches, and the other ranks would wait for its collectives.

    Args:
        batches: the rank's batches of each file, each a list of row numbers.
    """
    return batches if any(batches) else [[[0]], *batches[1:]]


class BatchCutter(Generic[T]):
    """Splits a sequence of samples into batches that do not contain a row twice if that can be avoided.

    A sample whose row is already in the batch is deferred to a later batch. At most `16 * size` samples are deferred; if more
    would be, a batch may contain a row twice.

    Args:
        size: samples per batch.
        row_of: returns the row of a sample; None: no row is repeated, and samples are not compared.
    """

    def __init__(self, size: int, row_of: Callable[[T], Hashable] | None = None) -> None:
        self.size = size
        self.row_of = row_of
        self._batch: list[T] = []
        self._rows: set[Hashable] = set()
        self._waiting: deque[T] = deque()

    def add(self, sample: T) -> list[T] | None:
        """Add the next sample, and return a batch if it is now full."""
        if self._waiting and not self._batch:
            self._add_waiting(self.size - 1)  # leaves room for this sample, so that one call fills at most one batch
        if self._has(sample) and len(self._waiting) < 16 * self.size:
            self._waiting.append(sample)
            return None
        self._take(sample)
        return self._finished() if len(self._batch) == self.size else None

    def rest(self) -> Iterator[list[T]]:
        """Yield the remaining samples in batches; the last one may be smaller."""
        while self._batch or self._waiting:
            self._add_waiting(self.size)
            while self._waiting and len(self._batch) < self.size:  # only copies are left
                self._take(self._waiting.popleft())
            yield self._finished()

    def _has(self, sample: T) -> bool:
        return self.row_of is not None and self.row_of(sample) in self._rows

    def _take(self, sample: T) -> None:
        self._batch.append(sample)
        if self.row_of is not None:
            self._rows.add(self.row_of(sample))

    def _add_waiting(self, size: int) -> None:
        for _ in range(len(self._waiting)):
            sample = self._waiting.popleft()
            if len(self._batch) < size and not self._has(sample):
                self._take(sample)
            else:
                self._waiting.append(sample)

    def _finished(self) -> list[T]:
        batch, self._batch, self._rows = self._batch, [], set()
        return batch


def _drop_small(batches: Iterator[Sequence[T]], ranks: int) -> Iterator[Sequence[T]]:
    """Drop the batches that have fewer rows than ranks."""
    return (batch for batch in batches if len(batch) >= ranks)


def _count_batches(sizes: Sequence[int], ranks: int, batch_size: int) -> int:
    """Return the number of batches of groups of the given sizes; batches with fewer rows than ranks are dropped."""
    whole, rest = np.divmod(np.array(sizes, np.int64), ranks * batch_size)
    return int((whole + (rest >= ranks)).sum())


def _number_samples(copies: np.ndarray) -> np.ndarray:
    """Return `row + copy * rows` of each copy of each row: (sum of copies,) int64."""
    rows = np.repeat(np.arange(len(copies)), copies)
    firsts = np.repeat(np.cumsum(copies) - copies, copies)
    return rows + (np.arange(len(rows)) - firsts) * len(copies)


def _split_group(numbers: np.ndarray, size: int, row_of: Callable[[int], int] | None) -> Iterator[list[int]]:
    if row_of is None:
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size].tolist()
        return
    cutter = BatchCutter(size, row_of)
    for start in range(0, len(numbers), size):
        for number in numbers[start : start + size].tolist():
            if batch := cutter.add(number):
                yield batch
    yield from cutter.rest()
