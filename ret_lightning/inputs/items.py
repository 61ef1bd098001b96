"""One side of a row before it is put into a batch, and the step from such items to an `EncoderInput`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ret_lightning.inputs.encoder_input import EncoderInput

Tokenizer = Callable[[Sequence[str]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Item:
    """One side of a row, ready to be put into a batch: a text or None, and pixels (3, h, w) float32 or None."""

    text: str | None
    pixels: Tensor | None


def encoder_input(items: Sequence[Item], tokenizer: Tokenizer, image_size: int) -> EncoderInput:
    """B items as one input; texts are tokenised together, if there are any, and only the images that are there stacked.

    Args:
        items: B of them.
        tokenizer: texts to ids and mask.
        image_size: side of an image, pixels, for the shape of a batch without any.
    """
    if any(item.text is not None for item in items):
        input_ids, attention_mask = tokenizer([item.text or "" for item in items])
    else:
        input_ids = torch.zeros(len(items), 1, dtype=torch.int64)
        attention_mask = torch.zeros(len(items), 1, dtype=torch.bool)
    pixels = [item.pixels for item in items if item.pixels is not None]
    return EncoderInput(
        input_ids,
        attention_mask,
        torch.stack(pixels) if pixels else torch.zeros(0, 3, image_size, image_size),
        torch.tensor([i for i, item in enumerate(items) if item.text is not None], dtype=torch.int64),
        torch.tensor([i for i, item in enumerate(items) if item.pixels is not None], dtype=torch.int64),
    )
