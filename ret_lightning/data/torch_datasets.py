"""Rows to items: a torch dataset for each kind of file, with images decoded, augmented in training, and transformed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ret_lightning.data.bad_rows import BadRow, OnBadRow, UntoldPlace
from ret_lightning.data.batch import EvaluationBatch, TrainingBatch, label
from ret_lightning.data.images.sources import ImageReader
from ret_lightning.data.instructions import Instructions
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers.indexed_rows import IndexedRows
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.rows import M2KR_ROWS, BytePlace, Content, ExtraColumns, Passage, Place, Query, RowParser
from ret_lightning.data.sampling.batch_samplers import SampledRow
from ret_lightning.data.types import Side
from ret_lightning.errors import DataError
from ret_lightning.inputs import Augmentation, EncoderInput, Item, Tokenizer, encoder_input
from ret_lightning.inputs.truncated_texts import TextCount, count_cut
from ret_lightning.losses import PADDING

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingItem:
    """A training row, read.

    Attributes:
        query: its query.
        passages: the positive, and then the negatives that it names.
        labels: of the query: one for each of its passage ids, the positive's first.
        passage_labels: one for each of the passages.
        subset: `unknown` for a row without one.
        columns: by name a number or several of the row, see `ExtraColumns`.
        passage_columns: by name a number for each of the passages.
    """

    query: Item
    passages: tuple[Item, ...]
    labels: tuple[int, ...]
    passage_labels: tuple[int, ...]
    subset: str
    columns: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    passage_columns: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class TrainingRows(Dataset):
    """The training rows, looked up by the samples of a sampler.

    Args:
        rows: gives a row and its place for a sample's `row`.
        read_image: for both sides.
        names: tells the subset of a row.
        augmentation: of the images of both sides; None: none.
        instructions: any of them takes the place of a row's own.
        negatives: most that are taken of a row's `negative_passages`, others in another epoch; None: all.
        seed: of the augmentation and of the choice of instructions and negatives.
        on_bad_row: what to do with a row that cannot be used: `raise` its error, or give a `BadRow` in its place.
        shared_passage_ids: whether one id names the same passage in every subset; else it names one in each.
        extra: columns of the rows that the loss reads.
        parser: of the rows.
    """

    def __init__(
        self,
        rows: IndexedRows | RowFiles,
        read_image: ImageReader,
        names: SubsetNames,
        augmentation: Augmentation | None = None,
        instructions: Instructions | None = None,
        negatives: int | None = None,
        seed: int = 0,
        on_bad_row: OnBadRow = "raise",
        shared_passage_ids: bool = False,
        extra: ExtraColumns | None = None,
        parser: RowParser = M2KR_ROWS,
    ) -> None:
        self.rows = rows
        self.read_image = read_image
        self.names = names
        self.augmentation = augmentation
        self.instructions = instructions or Instructions()
        self.negatives = negatives
        self.seed = seed
        self.on_bad_row = on_bad_row
        self.shared_passage_ids = shared_passage_ids
        self.extra = extra
        self.parser = parser

    def __getitem__(self, sample: SampledRow) -> TrainingItem | BadRow:
        """The row of a sample."""
        content, place = self.rows[sample.row]
        if self.on_bad_row == "raise":
            return self._read(content, place, sample)
        try:
            return self._read(content, UntoldPlace(place), sample)
        except DataError as error:
            return BadRow.of(error, place)  # as an exception, it would come out of a worker without its kind

    def _read(self, content: Content, place: Place | BytePlace | UntoldPlace, sample: SampledRow) -> TrainingItem:
        pair = self.parser.parse_pair(content, place, self.extra)
        subset = self.names(pair.query.subset, pair.query.data_id)
        # Seeded by what the row is, not by who reads it: any number of workers or ranks samples the same.
        random = np.random.default_rng((self.seed, *sample.identity()))
        augment = (lambda image: self.augmentation(image, random)) if self.augmentation else None

        def item(side: Query | Passage) -> Item:
            return Item(side.text, side.image and self.read_image(side.image, side.place, subset, augment))

        instruction = self.instructions.any(subset, random)
        query = item(pair.query if instruction is None else pair.query.instructed(instruction))
        chosen = self._chosen(len(pair.negatives), random)
        passages = (pair.passage, *(pair.negatives[i] for i in chosen))
        ids_of = "" if self.shared_passage_ids else subset
        return TrainingItem(
            query,
            tuple(item(passage) for passage in passages),
            tuple(label(ids_of, passage_id) for passage_id in pair.query.passage_ids),
            tuple(label(ids_of, passage.passage_id) for passage in passages),
            subset,
            pair.columns,
            {name: (v[0], *(v[1 + i] for i in chosen)) for name, v in pair.passage_columns.items()},
        )

    def _chosen(self, count: int, random: np.random.Generator) -> Sequence[int]:
        """Sample which of a row's negatives are taken, as positions in ascending order."""
        if self.negatives is None or count <= self.negatives:
            return range(count)
        return sorted(random.choice(count, self.negatives, replace=False).tolist())


class EvaluationRows(Dataset):
    """Queries or passages of a subset, one by one.

    Args:
        rows: the queries, or the pool.
        read_image: as it is, without augmentation.
        subset: name; empty where there is none.
        side: `query` or `passage`.
        on_bad_row: what to do with a row whose image cannot be read: `raise` its error, or let the row go without it, so that
            the metrics are over the same rows, whatever the state of the images.
    """

    def __init__(
        self,
        rows: Sequence[Query] | Sequence[Passage],
        read_image: ImageReader,
        subset: str,
        side: Side,
        on_bad_row: OnBadRow = "raise",
    ) -> None:
        self.rows = rows
        self.read_image = read_image
        self.subset = subset
        self.side: Side = side
        self.on_bad_row = on_bad_row

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Item, int, BadRow | None]:
        row = self.rows[index]
        try:
            pixels = row.image and self.read_image(row.image, row.place, self.subset)
        except DataError as error:
            if self.on_bad_row == "raise":
                raise
            return Item(row.text, None), index, BadRow.of(error, row.place)
        return Item(row.text, pixels), index, None


class Collator:
    """Items to batches.

    Args:
        tokenizer: texts to ids and mask.
        image_size: side of an image, pixels.
        extra: columns that training rows carry.
    """

    def __init__(self, tokenizer: Tokenizer, image_size: int, extra: ExtraColumns | None = None) -> None:
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.extra = extra or ExtraColumns()

    def training(self, drawn: Sequence[TrainingItem | BadRow]) -> TrainingBatch:
        """Collate training rows; bad ones are left out of the batch and reported in `bad_rows`."""
        rows = [row for row in drawn if isinstance(row, TrainingItem)]
        passages = _positives_first([row.passages for row in rows])
        passage_labels = _positives_first([row.passage_labels for row in rows])
        passage_rows = _positives_first([[number] * len(row.passages) for number, row in enumerate(rows)])
        of_passages = {
            name: _positives_first([row.passage_columns[name] for row in rows]) for name in self.extra.passage
        }
        extra = {name: _column([row.columns[name] for row in rows]) for name in self.extra.row}
        (query_inputs, texts), (passage_inputs, passage_texts) = (
            self._inputs(items) for items in ([row.query for row in rows], passages)
        )
        texts.add(passage_texts)
        return TrainingBatch(
            query_inputs,
            passage_inputs,
            _padded([row.labels for row in rows]),
            torch.tensor(passage_labels, dtype=torch.int64),
            torch.tensor(passage_rows, dtype=torch.int64),
            tuple(row.subset for row in rows),
            extra | {name: torch.tensor(values, dtype=torch.float32) for name, values in of_passages.items()},
            tuple(row for row in drawn if isinstance(row, BadRow)),
            texts,
        )

    def evaluation(
        self, rows: Sequence[tuple[Item, int, BadRow | None]], subset: str, side: Side, is_repeated: bool = False
    ) -> EvaluationBatch:
        """Collate B queries or passages of `EvaluationRows`; the last arguments go into the batch as they are."""
        items, indices, bad = zip(*rows, strict=True)
        inputs, texts = self._inputs(items, by_itself=True)
        return EvaluationBatch(
            inputs,
            torch.tensor(indices, dtype=torch.int64),
            subset,
            side,
            tuple(row for row in bad if row is not None),
            tuple(index for index, row in zip(indices, bad, strict=True) if row is not None),
            texts,
            is_repeated,
        )

    def _inputs(self, items: Sequence[Item], by_itself: bool = False) -> tuple[EncoderInput, TextCount]:
        inputs = encoder_input(items, self.tokenizer, self.image_size, by_itself)
        return inputs, count_cut(self.tokenizer, items, inputs)


def _positives_first(values: Sequence[Sequence[T]]) -> list[T]:
    """Order what rows have for each of their passages as a batch does: the positives, and then the negatives row by row."""
    return [row[0] for row in values] + [value for row in values for value in row[1:]]


def _column(values: Sequence[float | Sequence[float]]) -> Tensor:
    """B numbers as (B,) float32, B lists as (B, n), padded with NaN."""
    if not any(isinstance(value, Sequence) for value in values):
        return torch.tensor(values, dtype=torch.float32)
    rows = [value if isinstance(value, Sequence) else [value] for value in values]
    width = max(map(len, rows))
    return torch.tensor([[*row, *[math.nan] * (width - len(row))] for row in rows], dtype=torch.float32)


def _padded(labels: Sequence[Sequence[int]]) -> Tensor:
    """B rows of labels as (B, m) int64, m >= 1."""
    width = max(map(len, labels), default=1)
    rows = [[*row, *[PADDING] * (width - len(row))] for row in labels]
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), width)
