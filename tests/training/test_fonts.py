"""Fonts that have the letters of a text, by what the files themselves hold, and lines that stay within their cell."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
from matplotlib.ft2font import FT2Font

from ret_lightning.training import fonts
from ret_lightning.training.example_picture import LINES, _lines
from ret_lightning.training.fonts import font_for

FOLDER = Path(matplotlib.get_data_path()) / "fonts/ttf"


def letters_of(name: str) -> set[int]:
    return set(FT2Font(str(FOLDER / name)).get_charmap())


def test_the_usual_font_where_it_has_all_and_another_where_it_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, other = letters_of("DejaVuSans.ttf"), letters_of("STIXGeneral.ttf")
    only_there = sorted(other - usual)
    assert len(only_there) > 10
    monkeypatch.setattr(fonts, "_installed", lambda: (str(FOLDER / "cmr10.ttf"), str(FOLDER / "STIXGeneral.ttf")))
    assert font_for("A question, and é ü ж?", 11).getname()[0] == "DejaVu Sans"
    assert font_for("".join(map(chr, only_there[:5])) + " of it", 11).getname()[0] == "STIXGeneral"
    assert font_for("\U0010fffd", 11).getname()[0] == "DejaVu Sans"  # nobody has it


def test_a_font_that_is_not_there_any_more_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_installed", lambda: ("/gone.ttf",))
    assert font_for("\U0010fffd", 11).getname()[0] == "DejaVu Sans"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("a few words", True),
        ("many words that go on and on " * 8, False),
        ("東京の塔とその歴史についての長い文章" * 6, False),
        ("W" * 200, False),
        ("one_word_that_is_much_longer_than_a_line_of_a_cell and then more", True),
        ("", True),
    ],
)
def test_lines_are_no_wider_than_they_may_be_and_lose_nothing_before_the_end(text: str, whole: bool) -> None:
    font = font_for(text, 11)
    lines = _lines(text, font, 170)
    assert len(lines) <= LINES
    assert all(font.getlength(line) <= 170 for line in lines)
    shown = "".join(lines).replace(" ", "").removesuffix("...")
    assert text.replace(" ", "").startswith(shown)
    assert whole == (shown == text.replace(" ", ""))
    assert whole != (bool(lines) and lines[-1].endswith(" ..."))
