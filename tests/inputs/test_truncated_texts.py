"""Counts of the texts that a tokenizer cuts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ret_lightning.inputs import ClipTokenizer, Item, encoder_input
from ret_lightning.inputs.truncated_texts import TextCount, count_cut, count_texts, cut_texts

TEXTS = ["", "a", "a b", "a b c", "a b c d e f"]  # with start and end: 2, 3, 4, 5 and 8 tokens


@pytest.mark.parametrize(("limit", "cut"), [(2, 4), (3, 3), (4, 2), (5, 1), (7, 1), (8, 0), (77, 0)])
def test_texts_above_the_limit_are_counted(limit: int, cut: int) -> None:
    tokenizer = ClipTokenizer(limit)
    assert sum(cut_texts(tokenizer, TEXTS)) == cut
    items = [*(Item(text, None) for text in TEXTS), Item(None, torch.zeros(3, 2, 2))]
    for by_itself in (False, True):
        inputs = encoder_input(items, tokenizer, 2, by_itself)
        assert count_cut(tokenizer, items, inputs) == TextCount(len(TEXTS), cut, limit)
    assert count_texts(tokenizer, TEXTS) == TextCount(len(TEXTS), cut, limit)
    assert tokenizer.max_length == limit


def test_tokenizer_without_a_limit_cuts_nothing() -> None:
    def tokenizer(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(texts), 3, dtype=torch.int64), torch.ones(len(texts), 3, dtype=torch.bool)

    items = [Item("a", None), Item("b", None)]
    assert count_cut(tokenizer, items, encoder_input(items, tokenizer, 2)) == TextCount(2, 0)


def test_no_texts() -> None:
    items = [Item(None, torch.zeros(3, 2, 2))]
    assert count_cut(ClipTokenizer(), items, encoder_input(items, ClipTokenizer(), 2)) == TextCount(limit=77)
    assert cut_texts(ClipTokenizer(), []) == []


def test_one_line_states_how_many_of_how_many(caplog: pytest.LogCaptureFixture) -> None:
    log, count = logging.getLogger("test"), TextCount()
    count.add(TextCount(5, 2, 77))
    count.add(TextCount(10, 1, 77))
    count.warn(log, "query texts")
    TextCount(5, 0, 77).warn(log, "query texts")
    assert caplog.messages == ["query texts: 3 of 15 have more than 77 tokens and are cut there"]
