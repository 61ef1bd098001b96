"""Counts of truncated texts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ret_lightning.inputs import ClipTokenizer, Item, collate_items
from ret_lightning.inputs.truncated_texts import TextCount, count_texts, count_truncated, find_truncated

TEXTS = ["", "a", "a b", "a b c", "a b c d e f"]  # with start and end: 2, 3, 4, 5 and 8 tokens


@pytest.mark.parametrize(("limit", "truncated"), [(2, 4), (3, 3), (4, 2), (5, 1), (7, 1), (8, 0), (77, 0)])
def test_truncated_texts_are_counted(limit: int, truncated: int) -> None:
    tokenizer = ClipTokenizer(limit)
    assert sum(find_truncated(tokenizer, TEXTS)) == truncated
    items = [*(Item(text, None) for text in TEXTS), Item(None, torch.zeros(3, 2, 2))]
    for batch_invariant in (False, True):
        inputs = collate_items(items, tokenizer, 2, batch_invariant)
        assert count_truncated(tokenizer, items, inputs) == TextCount(len(TEXTS), truncated, limit)
    assert count_texts(tokenizer, TEXTS) == TextCount(len(TEXTS), truncated, limit)
    assert tokenizer.max_length == limit


def test_tokenizer_without_limit_truncates_nothing() -> None:
    def tokenizer(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(texts), 3, dtype=torch.int64), torch.ones(len(texts), 3, dtype=torch.bool)

    items = [Item("a", None), Item("b", None)]
    assert count_truncated(tokenizer, items, collate_items(items, tokenizer, 2)) == TextCount(2, 0)


def test_batch_without_texts() -> None:
    items = [Item(None, torch.zeros(3, 2, 2))]
    assert count_truncated(ClipTokenizer(), items, collate_items(items, ClipTokenizer(), 2)) == TextCount(limit=77)
    assert find_truncated(ClipTokenizer(), []) == []


def test_warning_states_counts_and_limit(caplog: pytest.LogCaptureFixture) -> None:
    log, count = logging.getLogger("test"), TextCount()
    count.add(TextCount(5, 2, 77))
    count.add(TextCount(10, 1, 77))
    count.warn(log, "query texts")
    TextCount(5, 0, 77).warn(log, "query texts")
    assert caplog.messages == ["query texts: 3 of 15 have more than 77 tokens and are truncated"]
