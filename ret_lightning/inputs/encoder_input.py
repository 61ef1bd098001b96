"""The one type that an encoder takes: B rows of text and image, of which either may be missing."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class EncoderInput:
    """B rows for one tower.

    Attributes:
        input_ids: (B, L) int64 token ids, padded on the right. Rows without a text hold anything (an empty string, say).
        attention_mask: (B, L) bool, True where a token counts.
        pixel_values: (B_image, 3, h, w) floating point, of the rows that have an image, in the order of the rows.
        text_rows: (B_text,) int64, the rows that have a text, ascending.
        image_rows: (B_image,) int64, the rows that have an image, ascending.

    The rows stand as indices, not as masks, so that no GPU has to be asked how many there are; `text_mask` and
    `image_mask` are derived. Build one from dense tensors with `EncoderInput.dense`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor
    text_rows: Tensor
    image_rows: Tensor

    def __post_init__(self) -> None:
        if self.input_ids.dim() != 2 or self.attention_mask.shape != self.input_ids.shape:
            raise ValueError(
                "EncoderInput: input_ids and attention_mask must both be (B, L), got "
                f"{tuple(self.input_ids.shape)} and {tuple(self.attention_mask.shape)}"
            )
        if self.pixel_values.dim() != 4 or len(self.pixel_values) != len(self.image_rows):
            raise ValueError(
                f"EncoderInput: pixel_values must be ({len(self.image_rows)}, 3, h, w), one for each row that has an "
                f"image, got {tuple(self.pixel_values.shape)}"
            )

    @classmethod
    def dense(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        text_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
    ) -> EncoderInput:
        """From dense tensors, as the published code takes them.

        Args:
            input_ids: (B, L) integers.
            attention_mask: (B, L), non-zero where a token counts.
            pixel_values: (B, 3, h, w); pictures of rows without an image are dropped. (B_image, 3, h, w) with only the
                rows that have one is taken as well.
            text_mask: (B,) non-zero where the row has a text; None: all have.
            image_mask: (B,) non-zero where the row has an image; None: all have.
        """
        text_mask = _mask(text_mask, "text_mask", input_ids)
        image_mask = _mask(image_mask, "image_mask", input_ids)
        image_rows = image_mask.nonzero().squeeze(1)
        if len(pixel_values) == len(input_ids) and len(image_rows) < len(input_ids):
            pixel_values = pixel_values[image_rows.to(pixel_values.device)]
        return cls(input_ids, attention_mask.bool(), pixel_values, text_mask.nonzero().squeeze(1), image_rows)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def text_mask(self) -> Tensor:
        """(B,) bool, True where the row has a text."""
        return _rows_to_mask(self.text_rows, len(self))

    @property
    def image_mask(self) -> Tensor:
        """(B,) bool, True where the row has an image."""
        return _rows_to_mask(self.image_rows, len(self))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EncoderInput:
        """The same rows on another device; dtypes stay."""
        return EncoderInput(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def pin_memory(self) -> EncoderInput:
        """The same rows in page-locked memory; a DataLoader with `pin_memory=True` calls it."""
        return EncoderInput(*(getattr(self, f.name).pin_memory() for f in fields(self)))

    def stretch(self, start: int, stop: int) -> EncoderInput:
        """The rows from `start` to `stop`, without it; texts keep their padding."""
        texts = self.text_rows[(self.text_rows >= start) & (self.text_rows < stop)]
        own = (self.image_rows >= start) & (self.image_rows < stop)
        return EncoderInput(
            self.input_ids[start:stop],
            self.attention_mask[start:stop],
            self.pixel_values[own],
            texts - start,
            self.image_rows[own] - start,
        )


def _mask(mask: Tensor | None, name: str, input_ids: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    if mask.shape != input_ids.shape[:1]:
        raise ValueError(f"EncoderInput: {name} must be ({len(input_ids)},), got {tuple(mask.shape)}")
    return mask.bool()


def _rows_to_mask(rows: Tensor, count: int) -> Tensor:
    mask = torch.zeros(count, dtype=torch.bool, device=rows.device)
    mask[rows] = True
    return mask
