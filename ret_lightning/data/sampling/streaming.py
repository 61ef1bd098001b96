"""Training rows read while training goes on: no copy, no index, a few stretches of the files and a buffer in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from random import Random
from typing import TypeVar

from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers.row_files import RawRow, RowFiles, Stretch
from ret_lightning.data.rows import M2KR_ROWS, RowParser
from ret_lightning.data.sampling.batch_samplers import BatchCutter, EpochBatches, SampledRow, Span
from ret_lightning.data.sampling.mixture import Mixture
from ret_lightning.errors import DataError

T = TypeVar("T")

OPEN_STRETCHES = 8
_FINISHED_BATCHES = 8  # of one subset each, from which the next one is drawn


@dataclass(frozen=True)
class RowStream:
    """The training rows of an epoch, in an order that follows from the seed and the epoch alone.

    How well it mixes: the stretches of the files (of up to 16 MB in plain files, row groups in parquet, whole files where
    they are compressed) come in random order, `OPEN_STRETCHES` of them are read at the same time, the next row from any of
    them, and a row then changes places with any of `buffer` others. So two rows that stand side by side in a file end
    some `buffer` rows apart, and the rows of a batch come from eight places of the corpus or more; a corpus of fewer rows
    than `buffer` is shuffled perfectly. Compressed files mix worse when there are few of them: cut them into dozens.

    What it costs: memory for `buffer` rows (10,000 rows of ReT-M2KR are some 65 MB) and eight megabytes for the open files,
    in the main process of each rank and not in its workers. Every rank reads all of the files and parses nothing, unless
    the mixture or the batches ask for the subset of a row.

    Attributes:
        files: to read.
        names: tells the subset of a row.
        mixture: how often its rows come. The fraction of a factor is drawn row by row, so an epoch's length varies a little.
        buffer: rows.
        limit: only so many rows are used, the first ones that the mixture does not leave out; None: all.
        seed: of the order.
        removed: file and position of rows that are not used at all, see `RawRow`.
        parser: of the rows.
    """

    files: RowFiles
    names: SubsetNames
    mixture: Mixture
    buffer: int
    limit: int | None = None
    seed: int = 0
    removed: frozenset[tuple[int, int]] = frozenset()
    parser: RowParser = M2KR_ROWS

    def sample_epoch(self, epoch: int) -> Iterator[SampledRow]:
        """The samples of an epoch."""
        random = Random(f"{self.seed}/{epoch}")
        if self.limit is None:
            stretches = self.files.stretches()
            random.shuffle(stretches)
            rows = interleave([self._read(stretch) for stretch in stretches], OPEN_STRETCHES, random)
        else:
            rows = islice(filter(self._used, chain.from_iterable(map(self._read, self.files.stretches()))), self.limit)
        return shuffle_with_buffer(self._mixed(rows, epoch, random), self.buffer, random)

    def subset(self, row: RawRow) -> str:
        """The subset of a row; `unknown` where it does not tell or cannot be parsed."""
        return self.names(*self.parser.parse_subset(row.content))

    def _read(self, stretch: Stretch) -> Iterator[RawRow]:
        rows = self.files.read(stretch)
        return (row for row in rows if (row.file, row.position) not in self.removed) if self.removed else rows

    def _used(self, row: RawRow) -> bool:
        return self.mixture.is_plain or self.mixture.factor(self.subset(row)) > 0

    def _mixed(self, rows: Iterable[RawRow], epoch: int, random: Random) -> Iterator[SampledRow]:
        if self.mixture.is_plain:
            return (SampledRow(epoch, row) for row in rows)
        return (
            SampledRow(epoch, row, copy)
            for row in rows
            for copy in range(self.mixture.copies(self.subset(row), random.random()))
        )


class StreamedBatches(EpochBatches):
    """Batches of a stream; how many there are is known when it has ended, so there is no length.

    The rows themselves are handed to the dataset: they are read in the main process, in one order, and parsed, decoded and
    transformed by whatever worker is free.

    Args:
        stream: all rows.
        batch_size: rows a batch and rank.
        rank: of this process.
        world_size: how many ranks.
        one_subset: whether a batch is of rows of one subset only.
    """

    def __init__(
        self, stream: RowStream, batch_size: int, rank: int = 0, world_size: int = 1, one_subset: bool = False
    ) -> None:
        super().__init__(batch_size, stream.seed, rank, world_size)
        self.stream = stream
        self.one_subset = one_subset
        self.end: tuple[int, int] | None = None  # epoch and number of its last batch, when that has been handed out

    def _own_batches(self, epoch: int) -> Iterator[list[SampledRow]]:
        """Reads one batch ahead, so that the last one is known as such."""
        count = sum(span.batches for span in self.spans(epoch))
        waiting = None
        for batch in self.global_batches(epoch):
            if waiting is not None:
                yield self.share(waiting)
            waiting, count = batch, count + 1
        if waiting is not None:
            self.end = epoch, count
            yield self.share(waiting)

    def global_batches(self, epoch: int) -> Iterator[Sequence[SampledRow]]:
        """See `EpochBatches`.

        Raises:
            DataError: if a whole stream has too few rows for one batch.
        """
        empty = not self.spans(epoch)
        for batch in super().global_batches(epoch):
            empty = False
            yield batch
        if empty:
            raise DataError(
                f"{self.stream.files}: the rows that data.subsets, data.repeat, data.weights and data.limit select are too "
                f"few for one batch on each of {self.world_size} ranks",
                code="stream-too-short",
                ranks=self.world_size,
            )

    def _samples(self, epoch: int) -> Iterator[SampledRow]:
        return self.stream.sample_epoch(epoch)

    def _left(self, epoch: int, samples: Iterator[SampledRow], span: Span) -> Iterator[SampledRow]:
        waiting: dict[tuple[int, ...], SampledRow] = {}

        def read() -> Iterator[SampledRow]:
            for sample in samples:
                waiting[sample.identity()] = sample
                yield sample

        for batch in self._served(epoch, read(), span):
            for sample in batch:
                del waiting[sample.identity()]
        return chain(waiting.values(), samples)

    def _cut(self, epoch: int, samples: Iterator[SampledRow], size: int) -> Iterator[Sequence[SampledRow]]:
        if not self.one_subset:
            return self._cut_all(samples, size)
        return shuffle_with_buffer(
            self._cut_by_subset(samples, size), _FINISHED_BATCHES, Random(f"{self.seed}/{epoch}/batches")
        )

    def _cutter(self, size: int) -> BatchCutter[SampledRow]:
        plain = self.stream.mixture.is_plain
        return BatchCutter(size, None if plain else lambda sample: (sample.row.file, sample.row.position))

    def _cut_all(self, samples: Iterator[SampledRow], size: int) -> Iterator[list[SampledRow]]:
        cutter = self._cutter(size)
        for sample in samples:
            if batch := cutter.add(sample):
                yield batch
        yield from cutter.rest()

    def _cut_by_subset(self, samples: Iterator[SampledRow], size: int) -> Iterator[list[SampledRow]]:
        cutters: dict[str, BatchCutter[SampledRow]] = {}
        for sample in samples:
            name = self.stream.subset(sample.row)
            if name not in cutters:
                cutters[name] = self._cutter(size)
            if batch := cutters[name].add(sample):
                yield batch
        for cutter in cutters.values():
            yield from cutter.rest()


def interleave(sources: Sequence[Iterator[T]], at_once: int, random: Random) -> Iterator[T]:
    """The items of all sources, each time the next one of any of `at_once` sources that are open; in order within a source."""
    waiting = iter(sources)
    opened = list(islice(waiting, at_once))
    while opened:
        place = int(random.random() * len(opened))
        item = next(opened[place], None)
        if item is not None:
            yield item
        elif (source := next(waiting, None)) is not None:
            opened[place] = source
        else:
            opened.pop(place)


def shuffle_with_buffer(items: Iterable[T], buffer: int, random: Random) -> Iterator[T]:
    """The items in another order: each changes places with one of the `buffer` that wait; fewer than that, any order."""
    waiting: list[T] = []
    for item in items:
        if len(waiting) < buffer:
            waiting.append(item)
            continue
        place = int(random.random() * buffer)
        item, waiting[place] = waiting[place], item
        yield item
    random.shuffle(waiting)
    yield from waiting
