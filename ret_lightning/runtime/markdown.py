"""Escaping of texts from data and configs, so that Markdown displays them verbatim."""

from __future__ import annotations

import re

# Markup characters. An underscore within a word is not markup, and neither is a bracket that starts no link.
_INLINE = re.compile(r"[\\`*<>|~$&]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
_BLOCK = re.compile(r"^(\d*)([#+=.)\[-])")  # a heading, a list or a task, at the start of a paragraph


def markdown_line(text: str) -> str:
    """Join the lines of a text and replace control characters."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def escape(text: str) -> str:
    """Escape a text for use in a table cell or within a line; the result is one line."""
    return _INLINE.sub(r"\\\g<0>", markdown_line(text))


def paragraph(text: str) -> str:
    """Escape a text for use at the start of a paragraph or list item; the result is one line."""
    return _BLOCK.sub(r"\1\\\2", escape(text))


def fenced(text: str, language: str = "") -> str:
    """Return a fenced code block. Its fence is longer than any run of backticks in the text."""
    longest = max(map(len, re.findall("`{3,}", text)), default=2)
    return f"{'`' * (longest + 1)}{language}\n{text}\n{'`' * (longest + 1)}"
