"""Comments of config files and their keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.commands.key_comments import KeyComment, first_sentence, head_comment, key_comments

CONTENT = """\
# @package _global_
# What the file is for. More of it
# on a second line.
#
#   ret-train gate=x
defaults:
  - _self_
  - data: glyphs  # corpus
  - override /gate: lstm

# Seed of everything.
# 42 is the published one.
seed: 42  # whole

name: "a # b"  # a text
sizes: {a: 1, b: 2}  # in pixels
many:
  # Nested.
  - 1
node:  # a part
  width: 3

  # Not a number.
  depth: null
"""


def test_each_key_has_its_comments(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(CONTENT)
    found = key_comments(tmp_path / "a.yaml")
    assert found[0].path == ("defaults",)
    assert found[0].comment == ""  # the header comment belongs to the file
    assert found[1:] == [
        KeyComment(("defaults", "_self_"), "_self_", ""),
        KeyComment(("defaults", "data"), "glyphs", "corpus"),
        KeyComment(("defaults", "override /gate"), "lstm", ""),
        KeyComment(("seed",), "42", "Seed of everything. 42 is the published one. whole"),
        KeyComment(("name",), '"a # b"', "a text"),
        KeyComment(("sizes",), "{a: 1, b: 2}", "in pixels"),
        KeyComment(("many",), "- 1 ...", ""),
        KeyComment(("node",), "", "a part"),
        KeyComment(("node", "width"), "3", ""),
        KeyComment(("node", "depth"), "null", "Not a number."),
    ]
    assert found[4].summary == "Seed of everything"


def test_head_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(CONTENT)
    assert head_comment(tmp_path / "a.yaml") == "What the file is for. More of it on a second line."
    (tmp_path / "empty.yaml").write_text("")
    assert (head_comment(tmp_path / "empty.yaml"), key_comments(tmp_path / "empty.yaml")) == ("", [])


@pytest.mark.parametrize(
    ("comment", "sentence"),
    [
        ("One. Two.", "One"),
        ("A file, .jsonl or .tar, e.g. this. Two.", "A file, .jsonl or .tar, e.g. this"),
        ("As `pretrained`. Two", "As `pretrained`"),
        ("no stop", "no stop"),
        ("", ""),
    ],
)
def test_first_sentence(comment: str, sentence: str) -> None:
    assert first_sentence(comment) == sentence
