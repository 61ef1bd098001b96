"""One side of a row before it is put into a batch, and the step from such items to an `EncoderInput`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ret_lightning.inputs.encoder_input import EncoderInput
from ret_lightning.inputs.tokenizer import Tokenizer

Side = Literal["passage", "query"]  # of a row: which tower encodes it
PLURAL: dict[Side, str] = {"passage": "passages", "query": "queries"}

# Kernels take the places of a text by so many at a time, sum what is left over in another order, and a sum's last bit with it.
BLOCK = 16


@dataclass(frozen=True)
class Item:
    """One side of a row, ready to be put into a batch: a text or None, and pixels (3, h, w) float32 or None."""

    text: str | None
    pixels: Tensor | None


def encoder_input(
    items: Sequence[Item], tokenizer: Tokenizer, image_size: int, by_itself: bool = False
) -> EncoderInput:
    """B items as one input; texts are tokenised together, if there are any, and only the images that are there stacked.

    Args:
        items: B of them.
        tokenizer: texts to ids and mask; the longest text that it makes is its `max_length`, if it has one.
        image_size: side of an image, pixels, for the shape of a batch without any.
        by_itself: pad texts to a multiple of 16 ids, or to the tokenizer's `max_length`, so that what becomes of an item does
            not depend, by a last bit, on how long the other texts of its batch are. Costs 8 ids a text on average.
    """
    if any(item.text is not None for item in items):
        input_ids, attention_mask = tokenizer([item.text or "" for item in items])
        if by_itself:
            longest = getattr(tokenizer, "max_length", input_ids.shape[1])
            more = max(0, min(-(-input_ids.shape[1] // BLOCK) * BLOCK, longest) - input_ids.shape[1])
            input_ids = pad(input_ids, (0, more), value=getattr(tokenizer, "pad_id", 0))
            attention_mask = pad(attention_mask, (0, more))
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
