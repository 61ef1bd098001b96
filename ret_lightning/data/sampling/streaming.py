"""Streaming of training rows: files are read during training and shuffled with a buffer, without a copy or an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from random import Random
from typing import TypeVar, cast

from ret_lightning.data.epoch_position import Span
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers.row_files import FileSpan, RawRow, RowFiles
from ret_lightning.data.rows import M2KR_ROWS, RowParser
from ret_lightning.data.sampling.batch_samplers import BatchCutter, EpochBatches, SampledRow
from ret_lightning.data.sampling.mixture import Mixture
from ret_lightning.errors import DataError

T = TypeVar("T")

OPEN_SPANS = 8
_FINISHED_BATCHES = 8  # single-subset batches, from which the next one is sampled


@dataclass(frozen=True)
class RowStream:
    """A stream of training rows, in an order that depends on the seed and the epoch only.

    Shuffling has three stages. The spans of the files (up to 16 MiB of a plain file, a row group of a Parquet file, or a whole
    compressed file) are read in random order. `OPEN_SPANS` of them are open at the same time, and each row is read from a
    random one. Each row is then exchanged with a random one of the `buffer` rows in memory. Adjacent rows of a file are about
    `buffer` rows apart in the stream; fewer rows than `buffer` are shuffled uniformly. A compressed file is one span, so
    split compressed corpora into dozens of files.

    The buffer and the open files are in the main process of each rank, not in its loader workers. Each rank reads all files,
    and parses a row only if the mixture or `one_subset` batches need its subset.

    Attributes:
        files: files of the rows.
        names: maps the fields of a row to its subset.
        mixture: how often the rows of each subset are sampled per epoch. The fractional part of a factor is sampled per row,
            so the length of an epoch varies slightly.
        buffer: number of rows in the shuffle buffer.
        limit: maximum number of rows, the first ones that the mixture uses; None: all.
        seed: seed of the order.
        removed: (file, position) of rows that are not used, as in `RawRow`.
        parser: parser of the rows.
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
        """Yield the samples of an epoch in shuffled order.

        Args:
            epoch: number of the epoch, from 0.
        """
        random = Random(f"{self.seed}/{epoch}")
        if self.limit is None:
            spans = self.files.spans()
            random.shuffle(spans)
            rows = interleave([self._read(span) for span in spans], OPEN_SPANS, random)
        else:
            rows = islice(filter(self._used, chain.from_iterable(map(self._read, self.files.spans()))), self.limit)
        return shuffle_with_buffer(self._mixed(rows, epoch, random), self.buffer, random)

    def subset(self, row: RawRow) -> str:
        """Return the subset of a row; `unknown` if the row does not state it or cannot be parsed."""
        return self.names(*self.parser.parse_subset(row.content))

    def _read(self, span: FileSpan) -> Iterator[RawRow]:
        rows = self.files.read(span)
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
    """A batch sampler over a stream of rows; it has no length, because the number of batches is known at the end only.

    The main process reads the rows in order and passes them to the dataset; loader workers parse, decode and transform them.

    Args:
        stream: the rows.
        batch_size: rows per batch and rank, at least 1.
        rank: rank of this process, in [0, world_size).
        world_size: number of ranks.
        one_subset: whether all rows of a batch belong to one subset.
    """

    def __init__(
        self, stream: RowStream, batch_size: int, rank: int = 0, world_size: int = 1, one_subset: bool = False
    ) -> None:
        super().__init__(batch_size, stream.seed, rank, world_size)
        self.stream = stream
        self.one_subset = one_subset
        self.end: tuple[int, int] | None = None  # epoch and number of its last batch, once that batch was yielded

    def _own_batches(self, epoch: int) -> Iterator[list[SampledRow]]:
        """Yield this rank's batches, reading one batch ahead to detect the last one."""
        count = sum(span.batches for span in self.served_spans(epoch))
        waiting = None
        for batch in self.global_batches(epoch):
            if waiting is not None:
                yield self.share(waiting)
            waiting, count = batch, count + 1
        if waiting is not None:
            self.end = epoch, count
            yield self.share(waiting)

    def global_batches(self, epoch: int) -> Iterator[Sequence[SampledRow]]:
        """Yield the remaining global batches of an epoch; each has at least one row per rank.

        Args:
            epoch: number of the epoch, from 0.

        Raises:
            DataError: if the whole stream has too few rows for one batch.
        """
        empty = not self.served_spans(epoch)
        for batch in super().global_batches(epoch):
            empty = False
            yield batch
        if empty:
            raise DataError(
                f"{self.stream.files}: data.subsets, data.repeat, data.weights and data.limit select too few rows for one "
                f"batch on {self.world_size} ranks",
                code="stream-too-short",
                path=str(self.stream.files),
                ranks=self.world_size,
            )

    def _samples(self, epoch: int) -> Iterator[SampledRow]:
        return self.stream.sample_epoch(epoch)

    def _remaining(self, epoch: int, samples: Iterator[SampledRow], span: Span) -> Iterator[SampledRow]:
        waiting: dict[tuple[int, ...], SampledRow] = {}

        def read() -> Iterator[SampledRow]:
            for sample in samples:
                waiting[sample.identity()] = sample
                yield sample

        for batch in self._served(epoch, read(), span):
            for sample in batch:
                del waiting[sample.identity()]
        return chain(waiting.values(), samples)

    def _split(self, epoch: int, samples: Iterator[SampledRow], size: int) -> Iterator[Sequence[SampledRow]]:
        if not self.one_subset:
            return self._split_all(samples, size)
        return shuffle_with_buffer(
            self._split_by_subset(samples, size), _FINISHED_BATCHES, Random(f"{self.seed}/{epoch}/batches")
        )

    def _cutter(self, size: int) -> BatchCutter[SampledRow]:
        plain = self.stream.mixture.is_plain
        return BatchCutter(size, None if plain else lambda sample: (sample.row.file, sample.row.position))

    def _split_all(self, samples: Iterator[SampledRow], size: int) -> Iterator[list[SampledRow]]:
        cutter = self._cutter(size)
        for sample in samples:
            if batch := cutter.add(sample):
                yield batch
        yield from cutter.rest()

    def _split_by_subset(self, samples: Iterator[SampledRow], size: int) -> Iterator[list[SampledRow]]:
        cutters: dict[str, BatchCutter[SampledRow]] = {}
        for sample in samples:
            name = self.stream.subset(cast(RawRow, sample.row))
            if name not in cutters:
                cutters[name] = self._cutter(size)
            if batch := cutters[name].add(sample):
                yield batch
        for cutter in cutters.values():
            yield from cutter.rest()


def interleave(sources: Sequence[Iterator[T]], at_once: int, random: Random) -> Iterator[T]:
    """Yield the items of all sources, each from a random open source; the order within a source is kept.

    Args:
        sources: iterators over items that are not None.
        at_once: maximum number of open sources.
        random: generator of the order.
    """
    waiting = iter(sources)
    opened = list(islice(waiting, at_once))
    while opened:
        index = int(random.random() * len(opened))
        item = next(opened[index], None)
        if item is not None:
            yield item
        elif (source := next(waiting, None)) is not None:
            opened[index] = source
        else:
            opened.pop(index)


def shuffle_with_buffer(items: Iterable[T], buffer: int, random: Random) -> Iterator[T]:
    """Yield the items in random order, shuffled with a buffer; `buffer` or fewer items are shuffled uniformly.

    Args:
        items: the items.
        buffer: number of items in memory; each new item replaces a random one of them.
        random: generator of the order.
    """
    waiting: list[T] = []
    for item in items:
        if len(waiting) < buffer:
            waiting.append(item)
            continue
        index = int(random.random() * buffer)
        item, waiting[index] = waiting[index], item
        yield item
    random.shuffle(waiting)
    yield from waiting
