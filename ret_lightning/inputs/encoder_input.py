"""The input of an encoder: a batch of rows with a text, an image or both.

B is the number of rows, L the padded length of the texts, B_text and B_image the numbers of rows with a text and with an image.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ret_lightning.runtime.deprecation import RenamedAttribute


@dataclass(frozen=True)
class EncoderInput:
    """A batch of B rows for one tower.

    The rows with a text and with an image are stored as indices instead of masks, so that their number is known without a GPU
    synchronization. Use `EncoderInput.dense` to build an instance from dense tensors and masks.

    Attributes:
        input_ids: (B, L) int64 token ids, padded on the right; arbitrary for rows without a text.
        attention_mask: (B, L) bool, True for tokens and False for padding.
        pixel_values: (B_image, 3, h, w) floating point, images of `image_rows`.
        text_rows: (B_text,) int64, indices of the rows with a text, ascending.
        image_rows: (B_image,) int64, indices of the rows with an image, ascending.

    Raises:
        ValueError: if the shapes are inconsistent.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor
    text_rows: Tensor
    image_rows: Tensor

    def __post_init__(self) -> None:
        if self.input_ids.dim() != 2 or self.attention_mask.shape != self.input_ids.shape:
            raise ValueError(
                "EncoderInput: input_ids and attention_mask must both have the shape (B, L), got "
                f"{tuple(self.input_ids.shape)} and {tuple(self.attention_mask.shape)}"
            )
        if self.pixel_values.dim() != 4 or len(self.pixel_values) != len(self.image_rows):
            raise ValueError(
                f"EncoderInput: pixel_values must have the shape ({len(self.image_rows)}, 3, h, w), one image for each of "
                f"image_rows, got {tuple(self.pixel_values.shape)}"
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
        """Build the input from dense tensors and masks, the arguments of the published code.

        Args:
            input_ids: (B, L) integer token ids.
            attention_mask: (B, L), non-zero for tokens.
            pixel_values: (B, 3, h, w), of which rows without an image are dropped, or (B_image, 3, h, w).
            text_mask: (B,), non-zero for rows with a text; None: all rows.
            image_mask: (B,), non-zero for rows with an image; None: all rows.

        Raises:
            ValueError: if the shapes are inconsistent.
        """
        text_mask = _as_bool_mask(text_mask, "text_mask", input_ids)
        image_mask = _as_bool_mask(image_mask, "image_mask", input_ids)
        image_rows = image_mask.nonzero().squeeze(1)
        if len(pixel_values) == len(input_ids) and len(image_rows) < len(input_ids):
            pixel_values = pixel_values[image_rows.to(pixel_values.device)]
        return cls(input_ids, attention_mask.bool(), pixel_values, text_mask.nonzero().squeeze(1), image_rows)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def text_mask(self) -> Tensor:
        """(B,) bool, True for rows with a text."""
        return _rows_to_mask(self.text_rows, len(self))

    @property
    def image_mask(self) -> Tensor:
        """(B,) bool, True for rows with an image."""
        return _rows_to_mask(self.image_rows, len(self))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EncoderInput:
        """Return the input on another device; dtypes are unchanged."""
        return EncoderInput(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def pin_memory(self) -> EncoderInput:
        """Return the input in page-locked memory. A DataLoader with `pin_memory=True` calls this method."""
        return EncoderInput(*(getattr(self, f.name).pin_memory() for f in fields(self)))

    def slice(self, start: int, stop: int) -> EncoderInput:
        """Return the rows in [start, stop); texts keep their padding."""
        texts = self.text_rows[(self.text_rows >= start) & (self.text_rows < stop)]
        images = (self.image_rows >= start) & (self.image_rows < stop)
        return EncoderInput(
            self.input_ids[start:stop],
            self.attention_mask[start:stop],
            self.pixel_values[images],
            texts - start,
            self.image_rows[images] - start,
        )

    stretch = RenamedAttribute("slice")  # earlier name


def _as_bool_mask(mask: Tensor | None, name: str, input_ids: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    if mask.shape != input_ids.shape[:1]:
        raise ValueError(f"EncoderInput: {name} must have the shape ({len(input_ids)},), got {tuple(mask.shape)}")
    return mask.bool()


def _rows_to_mask(rows: Tensor, count: int) -> Tensor:
    mask = torch.zeros(count, dtype=torch.bool, device=rows.device)
    mask[rows] = True
    return mask
