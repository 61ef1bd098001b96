"""Which rows make which batch on which rank: every row once an epoch over all ranks, another order each epoch."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import Sampler

from ret_lightning.data.epoch_position import Position, Span
from ret_lightning.data.readers.row_files import RawRow
from ret_lightning.data.sampling.mixture import RowMixture

T = TypeVar("T")


class SampledRow(NamedTuple):
    """One row of an epoch, as a sampler hands it to the dataset.

    Attributes:
        epoch: what a row turns into may depend on it (augmentation).
        row: its number, or the row itself where files are streamed.
        copy: counts the samples of a row that comes several times in an epoch, from 0.
    """

    epoch: int
    row: int | RawRow
    copy: int = 0

    def identity(self) -> tuple[int, ...]:
        """Numbers that seed whatever is random about this sample: the same whoever reads it, on any rank or worker."""
        row = (self.row.file, self.row.position) if isinstance(self.row, RawRow) else (self.row,)
        return (self.epoch, *row, self.copy)


class EpochBatches(Sampler[list[SampledRow]]):
    """This rank's share of the global batches of an epoch, each of `batch_size` rows per rank.

    Each rank takes its span of every batch, so W ranks with batches of B see what one rank with batches of W * B sees.
    The rows of a last, smaller batch are distributed evenly. A batch of fewer rows than ranks is dropped, since
    a rank without rows could not take part in the step.

    After `resume`, the epoch of the position serves the samples that are left. If the batches of the position have another
    size than this sampler's, the samples that they did not serve, in the order of the epoch, are cut anew. Samples that the
    earlier size dropped are among them.

    Args:
        batch_size: rows per batch and rank.
        seed: of the order.
        rank: of this process.
        world_size: number of ranks.
    """

    def __init__(self, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.position = Position()
        self.sampler = self  # where Lightning looks for set_epoch

    @property
    def global_size(self) -> int:
        """Rows of a whole batch over all ranks."""
        return self.batch_size * self.world_size

    @property
    def size(self) -> tuple[int, int]:
        """Ranks and rows per rank."""
        return self.world_size, self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Selects the order; Lightning calls it at the start of each epoch."""
        self.epoch = epoch

    def resume(self, position: Position) -> None:
        """Leaves out what was served at this position, in the epoch of the position only."""
        self.position = position

    def batches_per_epoch(self, ranks: int, batch_size: int) -> int | None:
        """Number of batches of an epoch that is not resumed, for any number of ranks and rows per rank; None: not known."""
        return None

    def spans(self, epoch: int) -> list[Span]:
        """What an epoch served before it was resumed; empty for every other epoch."""
        return [span for span in self.position.spans if span.batches] if epoch == self.position.epoch else []

    @property
    def is_recut(self) -> bool:
        """Whether the epoch at hand has batches of several sizes."""
        return bool(self._recut(self.epoch)[0])

    def __iter__(self) -> Iterator[list[SampledRow]]:
        return self._own_batches(self.epoch)  # the epoch as it is now, not when the first batch is asked for

    def _own_batches(self, epoch: int) -> Iterator[list[SampledRow]]:
        # Not before a batch is asked for: a loader with workers makes an iterator that it never uses.
        for batch in self.global_batches(epoch):
            yield self.share(batch)

    def global_batches(self, epoch: int) -> Iterator[Sequence[SampledRow]]:
        """The batches of all ranks together that are left of an epoch, each with a row for every rank."""
        recut, served = self._recut(epoch)
        samples = self._samples(epoch)
        for span in recut:
            samples = self._left(epoch, samples, span)
        return islice(_whole(self._cut(epoch, samples, self.global_size), self.world_size), served, None)

    def _recut(self, epoch: int) -> tuple[list[Span], int]:
        """The spans whose batches have another size than what follows them, and the number of batches after those."""
        spans = self.spans(epoch)
        served = spans.pop().batches if spans and spans[-1].size == self.size else 0
        return spans, served

    @abstractmethod
    def _samples(self, epoch: int) -> Any:
        """All samples of an epoch, in order."""

    @abstractmethod
    def _cut(self, epoch: int, samples: Any, size: int) -> Iterator[Sequence[SampledRow]]:
        """Cuts samples into batches of `size` rows; some may be smaller."""

    @abstractmethod
    def _left(self, epoch: int, samples: Any, span: Span) -> Any:
        """The samples, in order, that the batches of a span do not contain."""

    def _served(self, epoch: int, samples: Any, span: Span) -> Iterator[Sequence[SampledRow]]:
        return islice(_whole(self._cut(epoch, samples, span.ranks * span.batch_size), span.ranks), span.batches)

    def share(self, batch: Sequence[T]) -> list[T]:
        """This rank's span of a global batch; the first ranks take one row more where it does not divide."""
        each, more = divmod(len(batch), self.world_size)
        start = self.rank * each + min(self.rank, more)
        return list(batch[start : start + each + (self.rank < more)])


class GlobalBatches(EpochBatches):
    """Batches of rows that are known by their numbers.

    Args:
        rows: number of rows.
        batch_size: rows per batch and rank.
        seed: of the order.
        rank: of this process.
        world_size: number of ranks.
        shuffle: whether the order changes with the epoch, or is that of the file.
        mixture: how often each row comes in an epoch, and its subset; None: once.
        one_subset: whether a batch has rows of one subset only; the batches of all subsets come in random order.
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
        """Number of batches of the epoch, those included that it served before it was resumed."""
        if not self.is_recut:
            return self.batches_per_epoch(*self.size)
        if self._length is None or self._length[:2] != (self.epoch, self.position):
            samples = self._samples(self.epoch)
            for span in self.spans(self.epoch):
                samples = self._left(self.epoch, samples, span)
            left = _count([len(group) for group in samples.groups], *self.size)
            self._length = (self.epoch, self.position, self.position.batches + left)
        return self._length[2]

    def batches_per_epoch(self, ranks: int, batch_size: int) -> int:
        """See `EpochBatches`."""
        sizes = [self.rows] if self.mixture is None else self.mixture.sizes
        return _count(sizes if self.one_subset else [sum(sizes)], ranks, batch_size)

    def _samples(self, epoch: int) -> _Numbered:
        random = np.random.default_rng((self.seed, epoch))
        repeats = False
        groups = [np.arange(self.rows)]
        if self.mixture is not None:
            copies = self.mixture.copies(self.seed, epoch)
            repeats = bool(copies.max(initial=0) > 1)
            groups = self._groups(_numbers(copies))
        if self.shuffle:
            groups = [random.permutation(group) for group in groups]
        return _Numbered(groups, repeats, random)

    def _groups(self, numbers: np.ndarray) -> list[np.ndarray]:
        if not self.one_subset:
            return [numbers]
        codes = self.mixture.codes[numbers % self.rows]
        return [numbers[codes == code] for code in np.unique(codes)]

    def _cut(self, epoch: int, samples: _Numbered, size: int) -> Iterator[Sequence[SampledRow]]:
        turns = np.repeat(np.arange(len(samples.groups)), [-(-len(group) // size) for group in samples.groups])
        if self.shuffle and len(samples.groups) > 1:
            turns = samples.random.permutation(turns)
        row_of = (lambda number: number % self.rows) if samples.repeats else None
        batches = [_cut(group, size, row_of) for group in samples.groups]
        for turn in turns:
            yield [SampledRow(epoch, number % self.rows, number // self.rows) for number in next(batches[turn])]

    def _left(self, epoch: int, samples: _Numbered, span: Span) -> _Numbered:
        served = [
            sample.row + sample.copy * self.rows for batch in self._served(epoch, samples, span) for sample in batch
        ]
        return replace(samples, groups=[group[~np.isin(group, served)] for group in samples.groups])


@dataclass(frozen=True)
class _Numbered:
    """Samples of an epoch as numbers, row + copy * rows, since there may be millions of them.

    Attributes:
        groups: (samples,) int64 each. A batch has samples of one group only.
        repeats: whether a row may come more than once.
        random: of the order in which the groups' batches come.
    """

    groups: list[np.ndarray]
    repeats: bool
    random: np.random.Generator


def split_evaluation_batches(rows: Iterable[int], batch_size: int) -> list[list[int]]:
    """Rows of an evaluation file in batches: the same rows in the same batches, whoever encodes them, and with what else.

    The last bits of a row's vectors depend on the company that it is encoded in. So batches are cut from the whole file, and
    ranks are distribute_batches whole ones; a row then has the same vectors on any number of ranks, and after an interruption.

    Args:
        rows: numbers of rows, ascending; perhaps not all of the file.
        batch_size: most rows a batch.

    Returns:
        Batch after batch; of rows `batch_size * b` and on, those that are among `rows`, if any.
    """
    return [list(batch) for _, batch in groupby(rows, key=lambda row: row // batch_size)]


def distribute_batches(
    sizes: Sequence[int], batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[list[int]]]:
    """A rank's batches of each of several files of so many rows: every batch of `split_evaluation_batches` on one rank.

    Each file begins with another rank, so that files of a single batch do not all fall to the first.
    """
    whole = [split_evaluation_batches(range(size), batch_size) for size in sizes]
    return [batches[(rank - file) % world_size :: world_size] for file, batches in enumerate(whole)]


def fill_idle_rank(batches: list[list[list[int]]]) -> list[list[list[int]]]:
    """The batches of all loaders of a rank, with the first file's first row where there are none at all.

    Lightning leaves an evaluation out, its end included, on a rank that has no batch, and the others would wait for it there.
    """
    return batches if any(batches) else [[[0]], *batches[1:]]


class BatchCutter(Generic[T]):
    """Cuts a sequence into batches in which no row stands twice, as long as there are others.

    A sample whose row the batch has already waits for the next one. At most sixteen batches of samples wait; where a few rows
    come so often that this does not do, they meet.

    Args:
        size: of a batch.
        row_of: tells a sample's row; None: no row comes twice, and nothing has to be compared.
    """

    def __init__(self, size: int, row_of: Callable[[T], Hashable] | None = None) -> None:
        self.size = size
        self.row_of = row_of
        self._batch: list[T] = []
        self._rows: set[Hashable] = set()
        self._waiting: deque[T] = deque()

    def add(self, sample: T) -> list[T] | None:
        """Takes the next sample; gives a batch where that makes it full."""
        if self._waiting and not self._batch:
            self._resume(self.size - 1)  # the sample at hand is never the second of two that make a batch full
        if self._has(sample) and len(self._waiting) < 16 * self.size:
            self._waiting.append(sample)
            return None
        self._take(sample)
        return self._finished() if len(self._batch) == self.size else None

    def rest(self) -> Iterator[list[T]]:
        """What is left, in batches of which the last may be smaller."""
        while self._batch or self._waiting:
            self._resume(self.size)
            while self._waiting and len(self._batch) < self.size:  # copies meet: there is nothing else
                self._take(self._waiting.popleft())
            yield self._finished()

    def _has(self, sample: T) -> bool:
        return self.row_of is not None and self.row_of(sample) in self._rows

    def _take(self, sample: T) -> None:
        self._batch.append(sample)
        if self.row_of is not None:
            self._rows.add(self.row_of(sample))

    def _resume(self, size: int) -> None:
        for _ in range(len(self._waiting)):
            sample = self._waiting.popleft()
            if len(self._batch) < size and not self._has(sample):
                self._take(sample)
            else:
                self._waiting.append(sample)

    def _finished(self) -> list[T]:
        batch, self._batch, self._rows = self._batch, [], set()
        return batch


def _whole(batches: Iterator[Sequence[T]], ranks: int) -> Iterator[Sequence[T]]:
    """The batches that have a row for every rank."""
    return (batch for batch in batches if len(batch) >= ranks)


def _count(sizes: Sequence[int], ranks: int, batch_size: int) -> int:
    """Number of batches that groups of so many samples make, each batch of one group and with a row for every rank."""
    whole, rest = np.divmod(np.array(sizes, np.int64), ranks * batch_size)
    return int((whole + (rest >= ranks)).sum())


def _numbers(copies: np.ndarray) -> np.ndarray:
    rows = np.repeat(np.arange(len(copies)), copies)
    firsts = np.repeat(np.cumsum(copies) - copies, copies)
    return rows + (np.arange(len(rows)) - firsts) * len(copies)


def _cut(numbers: np.ndarray, size: int, row_of: Callable[[int], int] | None) -> Iterator[list[int]]:
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
