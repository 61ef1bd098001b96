"""The input type: dense and compact forms, and rows put together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from ret_lightning.inputs import EncoderInput, Item, encoder_input


def dense(count: int = 4, length: int = 5, **masks) -> EncoderInput:
    ids = torch.arange(count * length).view(count, length)
    pixels = torch.arange(float(count)).view(count, 1, 1, 1).expand(count, 3, 2, 2)
    return EncoderInput.dense(ids, torch.ones(count, length), pixels, **masks)


def test_pictures_of_rows_without_an_image_are_dropped() -> None:
    rows = dense(image_mask=torch.tensor([1.0, 0.0, 1.0, 0.0]), text_mask=torch.tensor([0, 1, 1, 1]))
    assert rows.pixel_values[:, 0, 0, 0].tolist() == [0, 2]
    assert rows.image_rows.tolist() == [0, 2]
    assert rows.text_mask.tolist() == [False, True, True, True]
    assert rows.image_mask.tolist() == [True, False, True, False]
    compact = EncoderInput.dense(
        rows.input_ids, rows.attention_mask, rows.pixel_values, image_mask=torch.tensor([1, 0, 1, 0])
    )
    assert torch.equal(compact.pixel_values, rows.pixel_values)


def test_without_masks_every_row_has_both() -> None:
    rows = dense()
    assert rows.text_mask.all()
    assert rows.image_mask.all()


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match=r"image_mask must be \(4,\), got \(3,\)"):
        dense(image_mask=torch.ones(3))
    with pytest.raises(ValueError, match=r"pixel_values must be \(2, 3, h, w\)"):
        EncoderInput.dense(
            torch.ones(4, 5).long(), torch.ones(4, 5), torch.ones(3, 3, 2, 2), image_mask=torch.tensor([1, 1, 0, 0])
        )
    with pytest.raises(ValueError, match=r"must both be \(B, L\)"):
        EncoderInput.dense(torch.ones(4, 5).long(), torch.ones(4, 6), torch.ones(4, 3, 2, 2))


class Letters:
    """One id a letter."""

    def __init__(self, max_length: int | None) -> None:
        if max_length is not None:
            self.max_length = max_length

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [torch.tensor([ord(letter) for letter in text]) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7)
        return ids, ids != 7


@pytest.mark.parametrize(
    ("longest", "max_length", "padded"),
    [(3, 77, 16), (16, 77, 16), (17, 77, 32), (70, 77, 77), (77, 77, 77), (3, None, 3)],
)
def test_texts_by_themselves_are_padded_in_steps_and_never_beyond_what_the_model_takes(
    longest: int, max_length: int | None, padded: int
) -> None:
    items = [Item("a" * longest, None), Item(None, None), Item("b", None)]
    tokenizer = Letters(max_length)
    plain, rows = (encoder_input(items, tokenizer, 8, by_itself=by_itself) for by_itself in (False, True))
    assert plain.input_ids.shape == (3, longest)
    assert rows.input_ids.shape == rows.attention_mask.shape == (3, padded)
    assert torch.equal(rows.input_ids[:, :longest], plain.input_ids)
    assert torch.equal(rows.attention_mask[:, :longest], plain.attention_mask)
    assert not rows.attention_mask[:, longest:].any()
    assert torch.equal(rows.text_rows, plain.text_rows)
