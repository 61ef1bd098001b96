"""Items, which are single queries or passages, and their collation to an `EncoderInput`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ret_lightning.inputs.encoder_input import EncoderInput
from ret_lightning.inputs.tokenizer import TokenizeFunction

Side = Literal["passage", "query"]  # selects the tower
PLURAL: dict[Side, str] = {"passage": "passages", "query": "queries"}

# Kernels process this many tokens at once. The order of a sum, and with it its last bit, depends on the remainder.
BLOCK = 16


@dataclass(frozen=True)
class Item:
    """A query or passage before collation.

    Attributes:
        text: text, or None.
        pixels: pixels (3, h, w) float32, or None.
    """

    text: str | None
    pixels: Tensor | None


def collate_items(
    items: Sequence[Item], tokenizer: TokenizeFunction, image_size: int, batch_invariant: bool = False
) -> EncoderInput:
    """Collate items to one input: tokenize their texts and stack their images.

    Args:
        items: B items.
        tokenizer: tokenizer of the texts.
        image_size: side of an image in pixels, which determines the shape of a batch without images.
        batch_invariant: whether to pad texts to a multiple of 16 tokens, or to the `max_length` of the tokenizer, so that the
            features of an item do not depend, by a last bit, on the lengths of the other texts in the batch.

    Returns:
        The B rows.
    """
    if any(item.text is not None for item in items):
        input_ids, attention_mask = tokenizer([item.text or "" for item in items])
        if batch_invariant:
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
