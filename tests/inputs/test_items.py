"""Collation of items: padding, masks, and the rows with a text or an image."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from ret_lightning.inputs import Item, collate_items


class Letters:
    """A tokenizer with one id per letter."""

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
def test_batch_invariant_padding(longest: int, max_length: int | None, padded: int) -> None:
    items = [Item("a" * longest, None), Item(None, None), Item("b", None)]
    tokenizer = Letters(max_length)
    plain, rows = (collate_items(items, tokenizer, 8, batch_invariant=each) for each in (False, True))
    assert plain.input_ids.shape == (3, longest)
    assert rows.input_ids.shape == rows.attention_mask.shape == (3, padded)
    assert torch.equal(rows.input_ids[:, :longest], plain.input_ids)
    assert torch.equal(rows.attention_mask[:, :longest], plain.attention_mask)
    assert not rows.attention_mask[:, longest:].any()
    assert torch.equal(rows.text_rows, plain.text_rows)


def test_only_existing_images_are_stacked() -> None:
    pixels = [torch.full((3, 4, 4), float(number)) for number in range(2)]
    items = [Item(None, pixels[0]), Item("ab", None), Item("c", pixels[1]), Item(None, None)]
    inputs = collate_items(items, Letters(77), 4)
    assert torch.equal(inputs.pixel_values, torch.stack(pixels))
    assert inputs.image_rows.tolist() == [0, 2]
    assert inputs.text_rows.tolist() == [1, 2]
    assert inputs.attention_mask.sum(dim=1).tolist() == [0, 2, 1, 0]
    assert len(inputs) == 4


def test_batch_without_texts_is_not_tokenized() -> None:
    def refused(texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("tokenised")

    inputs = collate_items([Item(None, torch.zeros(3, 4, 4))] * 2, refused, 4)
    assert (inputs.input_ids.shape, inputs.text_rows.tolist()) == ((2, 1), [])
    assert not inputs.attention_mask.any()


def test_batch_without_images_keeps_image_shape() -> None:
    inputs = collate_items([Item("a", None)], Letters(77), 6)
    assert inputs.pixel_values.shape == (0, 3, 6, 6)
    assert inputs.pixel_values.dtype == torch.float32


def test_padding_uses_pad_id() -> None:
    tokenizer = Letters(None)
    tokenizer.max_length, tokenizer.pad_id = 20, 7
    ids = collate_items([Item("abc", None), Item("a", None)], tokenizer, 8, batch_invariant=True).input_ids
    assert ids[0].tolist() == [*map(ord, "abc"), *[7] * 13]
    assert ids[1].tolist() == [ord("a"), *[7] * 15]
