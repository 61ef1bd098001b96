"""Items to one EncoderInput: padding, masks and the rows that have a text or an image."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from ret_lightning.inputs import Item, encoder_input


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


def test_only_images_that_are_there_are_stacked() -> None:
    pixels = [torch.full((3, 4, 4), float(number)) for number in range(2)]
    items = [Item(None, pixels[0]), Item("ab", None), Item("c", pixels[1]), Item(None, None)]
    inputs = encoder_input(items, Letters(77), 4)
    assert torch.equal(inputs.pixel_values, torch.stack(pixels))
    assert inputs.image_rows.tolist() == [0, 2]
    assert inputs.text_rows.tolist() == [1, 2]
    assert inputs.attention_mask.sum(dim=1).tolist() == [0, 2, 1, 0]
    assert len(inputs) == 4


def test_no_texts_need_no_tokenizer() -> None:
    def refused(texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("tokenised")

    inputs = encoder_input([Item(None, torch.zeros(3, 4, 4))] * 2, refused, 4)
    assert (inputs.input_ids.shape, inputs.text_rows.tolist()) == ((2, 1), [])
    assert not inputs.attention_mask.any()


def test_no_images_keep_the_shape_of_one() -> None:
    inputs = encoder_input([Item("a", None)], Letters(77), 6)
    assert inputs.pixel_values.shape == (0, 3, 6, 6)
    assert inputs.pixel_values.dtype == torch.float32


def test_padding_has_the_id_of_the_tokenizer() -> None:
    tokenizer = Letters(None)
    tokenizer.max_length, tokenizer.pad_id = 20, 7
    ids = encoder_input([Item("abc", None), Item("a", None)], tokenizer, 8, by_itself=True).input_ids
    assert ids[0].tolist() == [*map(ord, "abc"), *[7] * 13]
    assert ids[1].tolist() == [ord("a"), *[7] * 15]
