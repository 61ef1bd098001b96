"""Rows to items: a torch dataset for each kind of file, with images decoded, augmented in training, and transformed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from ret_lightning.data.batch import EvaluationBatch, TrainingBatch, label
from ret_lightning.data.images import ImageReader
from ret_lightning.data.json_lines import JsonLines
from ret_lightning.data.m2kr import row_subset
from ret_lightning.data.rows import Passage, Query, parse_pair
from ret_lightning.inputs import Augmentation, Item, Tokenizer, encoder_input


@dataclass(frozen=True)
class TrainingItem:
    """A training row, read.

    Attributes:
        query: its query.
        passages: the positive, and then the negatives that it names.
        labels: of the passages.
        subset: `unknown` where the row does not tell.
    """

    query: Item
    passages: tuple[Item, ...]
    labels: tuple[int, ...]
    subset: str


class TrainingRows(Dataset):
    """The rows of a training file.

    Args:
        lines: the file.
        read_image: for both sides.
        known_subsets: names that a row's subset is looked up in.
        augmentation: of the images of both sides; None: none.
        negatives: most that are taken of a row's `negative_passages`, others in another epoch; None: all.
        seed: of the augmentation and of the choice of negatives.
    """

    def __init__(
        self,
        lines: JsonLines,
        read_image: ImageReader,
        known_subsets: Sequence[str],
        augmentation: Augmentation | None = None,
        negatives: int | None = None,
        seed: int = 0,
    ) -> None:
        self.lines = lines
        self.read_image = read_image
        self.known_subsets = tuple(known_subsets)
        self.augmentation = augmentation
        self.negatives = negatives
        self.seed = seed

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, key: tuple[int, int]) -> TrainingItem:
        """The row of (epoch, row)."""
        epoch, row = key
        pair = parse_pair(*self.lines[row])
        subset = row_subset(pair.query, self.known_subsets) or "unknown"
        # Seeded by what the row is, not by who reads it: any number of workers or ranks draws the same.
        random = np.random.default_rng((self.seed, epoch, row))
        augment = (lambda image: self.augmentation(image, random)) if self.augmentation else None

        def item(side: Query | Passage) -> Item:
            path = side.image_path
            return Item(side.text, None if path is None else self.read_image(path, side.place, subset, augment))

        query = item(pair.query)
        passages = (pair.passage, *self._chosen(pair.negatives, random))
        labels = tuple(label(passage.passage_id) for passage in passages)
        return TrainingItem(query, tuple(item(passage) for passage in passages), labels, subset)

    def _chosen(self, negatives: Sequence[Passage], random: np.random.Generator) -> Sequence[Passage]:
        if self.negatives is None or len(negatives) <= self.negatives:
            return negatives
        return [negatives[i] for i in sorted(random.choice(len(negatives), self.negatives, replace=False))]


class EvaluationRows(Dataset):
    """Queries or passages of a subset, one by one.

    Args:
        rows: the queries, or the pool.
        read_image: as it is, without augmentation.
        subset: name, for messages.
    """

    def __init__(self, rows: Sequence[Query] | Sequence[Passage], read_image: ImageReader, subset: str) -> None:
        self.rows = rows
        self.read_image = read_image
        self.subset = subset

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Item, int]:
        row = self.rows[index]
        pixels = None if row.image_path is None else self.read_image(row.image_path, row.place, self.subset)
        return Item(row.text, pixels), index


class Collator:
    """Items to batches.

    Args:
        tokenizer: texts to ids and mask.
        image_size: side of an image, pixels.
    """

    def __init__(self, tokenizer: Tokenizer, image_size: int) -> None:
        self.tokenizer = tokenizer
        self.image_size = image_size

    def training(self, rows: Sequence[TrainingItem]) -> TrainingBatch:
        """B training rows to a batch."""
        passages = [row.passages[0] for row in rows] + [item for row in rows for item in row.passages[1:]]
        positives = [row.labels[0] for row in rows]
        negatives = [label for row in rows for label in row.labels[1:]]
        return TrainingBatch(
            encoder_input([row.query for row in rows], self.tokenizer, self.image_size),
            encoder_input(passages, self.tokenizer, self.image_size),
            torch.tensor(positives, dtype=torch.int64),
            torch.tensor(positives + negatives, dtype=torch.int64),
            tuple(row.subset for row in rows),
        )

    def evaluation(self, rows: Sequence[tuple[Item, int]]) -> EvaluationBatch:
        """B queries or passages to a batch."""
        items, indices = zip(*rows, strict=True)
        return EvaluationBatch(
            encoder_input(items, self.tokenizer, self.image_size), torch.tensor(indices, dtype=torch.int64)
        )
