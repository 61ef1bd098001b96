"""Rows to items: a torch dataset for each kind of file, with images decoded, augmented in training, and transformed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ret_lightning.data.batch import EvaluationBatch, TrainingBatch, label
from ret_lightning.data.json_lines import JsonLines
from ret_lightning.data.m2kr import row_subset
from ret_lightning.data.rows import Passage, Place, Query, parse_pair
from ret_lightning.errors import DataError
from ret_lightning.inputs import Augmentation, Item, Tokenizer, encoder_input, open_image


class ImageReader:
    """Finds, decodes and transforms the image of a row.

    Args:
        folder: what image paths are relative to.
        transform: an RGB image to pixels (3, size, size).
    """

    def __init__(self, folder: Path, transform: Callable[[Image.Image], Tensor]) -> None:
        self.folder = folder
        self.transform = transform

    def __call__(
        self, path: str, place: Place, subset: str, augment: Callable[[Image.Image], Image.Image] | None = None
    ) -> Tensor:
        """(3, size, size) float32. Raises DataError naming image, row and subset."""
        try:
            image = open_image(self.folder / path)
        except DataError as error:
            raise DataError(f"{place} (subset {subset}): {error}") from error
        return self.transform(augment(image) if augment else image)


class TrainingRows(Dataset):
    """The rows of a training file.

    Args:
        lines: the file.
        read_image: for both sides.
        known_subsets: names that a row's subset is looked up in.
        augmentation: of the images of both sides; None: none.
        seed: of the augmentation.
    """

    def __init__(
        self,
        lines: JsonLines,
        read_image: ImageReader,
        known_subsets: Sequence[str],
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.lines = lines
        self.read_image = read_image
        self.known_subsets = tuple(known_subsets)
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Item, Item, int, str]:
        """Query, passage, label and subset of (epoch, row)."""
        epoch, row = key
        pair = parse_pair(*self.lines[row])
        subset = row_subset(pair.query, self.known_subsets) or "unknown"
        # Seeded by what the row is, not by who reads it: any number of workers or ranks draws the same.
        random = np.random.default_rng((self.seed, epoch, row))
        augment = (lambda image: self.augmentation(image, random)) if self.augmentation else None
        items = []
        for side in (pair.query, pair.passage):
            pixels = None
            if side.image_path is not None:
                pixels = self.read_image(side.image_path, side.place, subset, augment)
            items.append(Item(side.text, pixels))
        return items[0], items[1], label(pair.passage.passage_id), subset


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

    def training(self, rows: Sequence[tuple[Item, Item, int, str]]) -> TrainingBatch:
        """B training rows to a batch."""
        queries, passages, labels, subsets = zip(*rows, strict=True)
        return TrainingBatch(
            encoder_input(queries, self.tokenizer, self.image_size),
            encoder_input(passages, self.tokenizer, self.image_size),
            torch.tensor(labels, dtype=torch.int64),
            tuple(subsets),
        )

    def evaluation(self, rows: Sequence[tuple[Item, int]]) -> EvaluationBatch:
        """B queries or passages to a batch."""
        items, indices = zip(*rows, strict=True)
        return EvaluationBatch(
            encoder_input(items, self.tokenizer, self.image_size), torch.tensor(indices, dtype=torch.int64)
        )
