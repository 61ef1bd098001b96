"""The batch types and their collation: rows with decoded images in, `EncoderInput`s out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ret_lightning.inputs import EncoderInput

Tokenizer = Callable[[Sequence[str]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Item:
    """One side of a row, ready to be put into a batch: a text or None, and pixels (3, h, w) float32 or None."""

    text: str | None
    pixels: Tensor | None


@dataclass(frozen=True)
class TrainingBatch:
    """B query-passage pairs.

    Attributes:
        queries: B rows.
        passages: B rows, the positive of each query.
        labels: (B,) int64, equal for equal passage ids.
        subsets: the B subsets' names, `unknown` where a row does not tell.
    """

    queries: EncoderInput
    passages: EncoderInput
    labels: Tensor
    subsets: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TrainingBatch:
        """The same batch on another device."""
        return TrainingBatch(
            self.queries.to(device, non_blocking),
            self.passages.to(device, non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.subsets,
        )

    def pin_memory(self) -> TrainingBatch:
        """The same batch in page-locked memory."""
        return TrainingBatch(
            self.queries.pin_memory(), self.passages.pin_memory(), self.labels.pin_memory(), self.subsets
        )


@dataclass(frozen=True)
class EvaluationBatch:
    """B rows of one side to encode.

    Attributes:
        inputs: B rows.
        rows: (B,) int64, their positions in the subset's queries or pool.
    """

    inputs: EncoderInput
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EvaluationBatch:
        """The same batch on another device."""
        return EvaluationBatch(self.inputs.to(device, non_blocking), self.rows.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> EvaluationBatch:
        """The same batch in page-locked memory."""
        return EvaluationBatch(self.inputs.pin_memory(), self.rows.pin_memory())


def label(passage_id: str) -> int:
    """A passage id as a 63-bit number, the same in every process (unlike `hash`), so that ranks can compare ids.

    Two of the 10,000 ids of a large batch collide with a probability of about 5e-12.
    """
    return int.from_bytes(hashlib.blake2b(passage_id.encode(), digest_size=8).digest(), "big") >> 1


def encoder_input(items: Sequence[Item], tokenizer: Tokenizer, image_size: int) -> EncoderInput:
    """B items as one input; texts are tokenised together, only the images that are there are stacked.

    Args:
        items: B of them.
        tokenizer: texts to ids and mask.
        image_size: side of an image, pixels, for the shape of a batch without any.
    """
    input_ids, attention_mask = tokenizer([item.text or "" for item in items])
    pixels = [item.pixels for item in items if item.pixels is not None]
    return EncoderInput(
        input_ids,
        attention_mask,
        torch.stack(pixels) if pixels else torch.zeros(0, 3, image_size, image_size),
        torch.tensor([i for i, item in enumerate(items) if item.text is not None], dtype=torch.int64),
        torch.tensor([i for i, item in enumerate(items) if item.pixels is not None], dtype=torch.int64),
    )
