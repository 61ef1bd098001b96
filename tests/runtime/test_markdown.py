"""Escaping of texts for Markdown."""

from __future__ import annotations

import pytest

from ret_lightning.runtime.markdown import escape, fenced, paragraph


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("gate.forget_bias", "gate.forget_bias"),
        ("_a_ __b__ c__d", r"\_a\_ \_\_b\_\_ c\_\_d"),
        ("a|b", r"a\|b"),
        ("[0, 2]", "[0, 2]"),
        ("[a](b) [a][b] [a]: b", r"[a\](b) [a\][b] [a\]: b"),
        ("a\nb\x00", "a b\ufffd"),
        ("+0.010", "+0.010"),
    ],
)
def test_escape_inline_markup(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("# a", r"\# a"),
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("12) a", r"12\) a"),
        ("1 run", "1 run"),
        ("[x] a", r"\[x] a"),
        ("3.5 s", r"3\.5 s"),
    ],
)
def test_escape_markup_at_start_of_paragraph(text: str, escaped: str) -> None:
    assert paragraph(text) == escaped


@pytest.mark.parametrize(("text", "fence"), [("a: b", "```"), ("a: ```", "````"), ("`````\nx", "``````")])
def test_fence_is_longer_than_backticks(text: str, fence: str) -> None:
    assert fenced(text, "yaml") == f"{fence}yaml\n{text}\n{fence}"
