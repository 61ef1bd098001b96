"""PyTorch datasets of training and evaluation rows, and the collator that turns their items into batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ret_lightning.data.bad_rows import BadRow, DeferredLocation, OnBadRow
from ret_lightning.data.batch import EvaluationBatch, TrainingBatch, label
from ret_lightning.data.images.sources import ImageReader
from ret_lightning.data.instructions import Instructions
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers.indexed_rows import IndexedRows
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.readers.source_location import Location
from ret_lightning.data.rows import M2KR_ROWS, Content, ExtraColumns, Passage, Query, RowParser
from ret_lightning.data.sampling.batch_samplers import SampledRow
from ret_lightning.data.types import Side
from ret_lightning.errors import DataError
from ret_lightning.inputs import Augmentation, EncoderInput, Item, Tokenizer, collate_items
from ret_lightning.inputs.truncated_texts import TextCount, count_truncated
from ret_lightning.losses import PADDING

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingItem:
    """A training row with decoded images.

    Attributes:
        query: the query.
        passages: the positive, followed by the negatives.
        labels: labels of the query's passage ids, the positive's first.
        passage_labels: label of each passage.
        subset: name of the subset; `unknown` if the row does not state one.
        columns: a number or a tuple of numbers of the row, by column name, as in `ExtraColumns`.
        passage_columns: one number per passage, by column name.
    """

    query: Item
    passages: tuple[Item, ...]
    labels: tuple[int, ...]
    passage_labels: tuple[int, ...]
    subset: str
    columns: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    passage_columns: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class TrainingRows(Dataset[Any]):
    """A dataset of training rows, indexed by `SampledRow`.

    Args:
        rows: container that returns the content and the source location of `SampledRow.row`.
        read_image: reader of the images of queries and passages.
        names: maps the fields of a row to its subset.
        augmentation: augmentation of the images of queries and passages; None: none.
        instructions: templates that replace the instructions of the rows; None: keep them.
        negatives: maximum number of `negative_passages` per row, sampled anew per epoch; None: all.
        seed: seed of the augmentation and of the sampling of instructions and negatives.
        on_bad_row: `raise` the error of a bad row, or `skip` it: return a `BadRow` instead.
        shared_passage_ids: whether equal ids of two subsets are the same passage.
        extra: columns of the rows for the loss; None: none.
        parser: parser of the rows.
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
        """Read a sampled row.

        Args:
            sample: the row to read, as from a batch sampler.

        Raises:
            DataError: if the row is bad and `on_bad_row` is `raise`.
        """
        content, location = cast(Any, self.rows)[sample.row]
        if self.on_bad_row == "raise":
            return self._read(content, location, sample)
        try:
            return self._read(content, cast(Location, DeferredLocation(location)), sample)
        except DataError as error:
            return BadRow.of(error, location)  # an exception raised in a loader worker loses its kind

    def _read(self, content: Content, location: Location, sample: SampledRow) -> TrainingItem:
        pair = self.parser.parse_pair(content, location, self.extra)
        subset = self.names(pair.query.subset, pair.query.data_id)
        # Seeded by the sample, so that the result does not depend on the number of workers or ranks.
        random = np.random.default_rng((self.seed, *sample.identity()))
        augmentation = self.augmentation
        augment = (lambda image: augmentation(image, random)) if augmentation else None

        def item(side: Query | Passage) -> Item:
            return Item(side.text, self.read_image(side.image, side.location, subset, augment) if side.image else None)

        instruction = self.instructions.sample(subset, random)
        query = item(pair.query if instruction is None else pair.query.with_instruction(instruction))
        chosen = self._sample_negatives(len(pair.negatives), random)
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

    def _sample_negatives(self, count: int, random: np.random.Generator) -> Sequence[int]:
        """Sample negatives of a row, and return their indices in ascending order."""
        if self.negatives is None or count <= self.negatives:
            return range(count)
        return sorted(random.choice(count, self.negatives, replace=False).tolist())


class EvaluationRows(Dataset[Any]):
    """A dataset of the queries or the candidate pool of a subset.

    An item is the decoded row, its index, and a `BadRow` if its image could not be read, else None.

    Args:
        rows: the queries, or the passages of the candidate pool.
        read_image: reader of the images.
        subset: name of the subset; empty if there is none.
        side: `query` or `passage`.
        on_bad_row: for a row whose image cannot be read, `raise` the error, or `skip` the image: the row is used without it,
            so that the metrics are computed over all rows.
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
            pixels = self.read_image(row.image, row.location, self.subset) if row.image else None
        except DataError as error:
            if self.on_bad_row == "raise":
                raise
            return Item(row.text, None), index, BadRow.of(error, row.location)
        return Item(row.text, pixels), index, None


class Collator:
    """Collates items of `TrainingRows` and `EvaluationRows` into batches.

    Args:
        tokenizer: maps texts to token ids and an attention mask.
        image_size: side of an image in pixels.
        extra: columns of the training rows for the loss; None: none.
    """

    def __init__(self, tokenizer: Tokenizer, image_size: int, extra: ExtraColumns | None = None) -> None:
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.extra = extra or ExtraColumns()

    def training(self, items: Sequence[TrainingItem | BadRow]) -> TrainingBatch:
        """Collate training rows; bad rows are left out of the batch and listed in its `bad_rows`.

        Args:
            items: items of `TrainingRows`.
        """
        rows = [row for row in items if isinstance(row, TrainingItem)]
        passages = _positives_first([row.passages for row in rows])
        passage_labels = _positives_first([row.passage_labels for row in rows])
        passage_rows = _positives_first([[number] * len(row.passages) for number, row in enumerate(rows)])
        of_passages = {
            name: _positives_first([row.passage_columns[name] for row in rows]) for name in self.extra.passage
        }
        extra = {name: _column([row.columns[name] for row in rows]) for name in self.extra.row}
        (query_inputs, texts), (passage_inputs, passage_texts) = (
            self._inputs(side) for side in ([row.query for row in rows], passages)
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
            tuple(row for row in items if isinstance(row, BadRow)),
            texts,
        )

    def evaluation(
        self, rows: Sequence[tuple[Item, int, BadRow | None]], subset: str, side: Side, is_repeated: bool = False
    ) -> EvaluationBatch:
        """Collate B queries or passages.

        Args:
            rows: items of `EvaluationRows`.
            subset: name of the subset.
            side: `query` or `passage`.
            is_repeated: whether the rows repeat those of another rank.
        """
        items, indices, bad = zip(*rows, strict=True)
        inputs, texts = self._inputs(items, batch_invariant=True)
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

    def _inputs(self, items: Sequence[Item], batch_invariant: bool = False) -> tuple[EncoderInput, TextCount]:
        inputs = collate_items(items, self.tokenizer, self.image_size, batch_invariant)
        return inputs, count_truncated(self.tokenizer, items, inputs)


def _positives_first(values: Sequence[Sequence[T]]) -> list[T]:
    """Flatten per-passage values of rows in the order of a batch: all positives, then the negatives row by row."""
    return [row[0] for row in values] + [value for row in values for value in row[1:]]


def _column(values: Sequence[float | Sequence[float]]) -> Tensor:
    """Return B numbers as (B,) float32, or B lists as (B, n) float32 padded with NaN."""
    if not any(isinstance(value, Sequence) for value in values):
        return torch.tensor(values, dtype=torch.float32)
    rows = [value if isinstance(value, Sequence) else [value] for value in values]
    width = max(map(len, rows))
    return torch.tensor([[*row, *[math.nan] * (width - len(row))] for row in rows], dtype=torch.float32)


def _padded(labels: Sequence[Sequence[int]]) -> Tensor:
    """Return B lists of labels as (B, m) int64, m >= 1, padded with `PADDING`."""
    width = max(map(len, labels), default=1)
    rows = [[*row, *[PADDING] * (width - len(row))] for row in labels]
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), width)
