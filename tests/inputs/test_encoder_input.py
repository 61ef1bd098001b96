"""EncoderInput: construction from dense tensors, masks and validation."""

from __future__ import annotations

import pytest
import torch

from ret_lightning.inputs import EncoderInput


def dense(count: int = 4, length: int = 5, **masks) -> EncoderInput:
    ids = torch.arange(count * length).view(count, length)
    pixels = torch.arange(float(count)).view(count, 1, 1, 1).expand(count, 3, 2, 2)
    return EncoderInput.dense(ids, torch.ones(count, length), pixels, **masks)


def test_dense_drops_pixels_of_rows_without_image() -> None:
    rows = dense(image_mask=torch.tensor([1.0, 0.0, 1.0, 0.0]), text_mask=torch.tensor([0, 1, 1, 1]))
    assert rows.pixel_values[:, 0, 0, 0].tolist() == [0, 2]
    assert rows.image_rows.tolist() == [0, 2]
    assert rows.text_mask.tolist() == [False, True, True, True]
    assert rows.image_mask.tolist() == [True, False, True, False]
    compact = EncoderInput.dense(
        rows.input_ids, rows.attention_mask, rows.pixel_values, image_mask=torch.tensor([1, 0, 1, 0])
    )
    assert torch.equal(compact.pixel_values, rows.pixel_values)


def test_dense_without_masks_has_all_texts_and_images() -> None:
    rows = dense()
    assert rows.text_mask.all()
    assert rows.image_mask.all()


def test_inconsistent_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image_mask must have the shape \(4,\), got \(3,\)"):
        dense(image_mask=torch.ones(3))
    with pytest.raises(ValueError, match=r"pixel_values must have the shape \(2, 3, h, w\)"):
        EncoderInput.dense(
            torch.ones(4, 5).long(), torch.ones(4, 5), torch.ones(3, 3, 2, 2), image_mask=torch.tensor([1, 1, 0, 0])
        )
    with pytest.raises(ValueError, match=r"must both have the shape \(B, L\)"):
        EncoderInput.dense(torch.ones(4, 5).long(), torch.ones(4, 6), torch.ones(4, 3, 2, 2))
