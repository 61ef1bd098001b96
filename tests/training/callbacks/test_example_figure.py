"""The figure of example queries."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ret_lightning.plotting.font_fallback import fit_font
from ret_lightning.training.callbacks import example_figure
from ret_lightning.training.callbacks.example_figure import LINES, _wrap_text
from ret_lightning.training.callbacks.example_types import Example, ExampleItem


def test_frame_color_marks_positives(tmp_path: Path) -> None:
    black = Image.new("RGB", (10, 40))
    example = Example(
        "s", "1", ExampleItem("q", black), None, [ExampleItem("a", None, True), ExampleItem("b " * 300, black, False)]
    )
    example_figure.draw_examples([example], 2, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        top = 2 * example_figure.HEADER
        left = [example_figure.GAP + column * example_figure.CELL_WIDTH for column in range(4)]
        colors = ["#" + bytes(picture.getpixel((x, top + 60))).hex() for x in left]
    assert colors[0] == example_figure.NEUTRAL
    assert colors[2:] == [example_figure.POSITIVE, example_figure.NEGATIVE]


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("a few words", True),
        ("a long text of many short words " * 8, False),
        ("東京の塔とその歴史についての長い文章" * 6, False),
        ("W" * 200, False),
        ("one_word_that_is_much_longer_than_a_line_of_a_cell and then more", True),
        ("", True),
    ],
)
def test_wrapped_text_fits_and_keeps_its_beginning(text: str, whole: bool) -> None:
    text, font = fit_font(text, 11)
    lines = _wrap_text(text, font, 170)
    assert len(lines) <= LINES
    assert all(font.getlength(line) <= 170 for line in lines)
    wrapped = "".join(lines).replace(" ", "").removesuffix("...")
    assert text.replace(" ", "").startswith(wrapped)
    assert whole == (wrapped == text.replace(" ", ""))
    assert whole != (bool(lines) and lines[-1].endswith(" ..."))
