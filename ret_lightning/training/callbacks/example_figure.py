"""Example queries as one picture: a row a query; green frames stand around right passages, red ones around wrong ones."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ret_lightning.plotting.font_fallback import fit_font
from ret_lightning.runtime.atomic_files import whole_file
from ret_lightning.training.callbacks.example_types import Example, ExampleItem

# Pixels.
CELL_WIDTH, CELL_HEIGHT, THUMBNAIL, GAP, HEADER = 190, 178, 96, 8, 28
RIGHT, WRONG, NEUTRAL, INK, PAPER = "#1a7f37", "#cf222e", "#8c959f", "#1f2328", "#ffffff"
LETTER = 11  # height
LINES = 5  # of text under a picture
MORE = " ..."


def draw_examples(examples: Sequence[Example], top_k: int, file: Path) -> None:
    """Writes the picture.

    Args:
        examples: one row each.
        top_k: columns of retrieved passages.
        file: a PNG file, replaced whole.
    """
    titles = ["query", "gold", *(f"rank {rank}" for rank in range(1, top_k + 1))]
    size = len(titles) * CELL_WIDTH + GAP, HEADER + len(examples) * (CELL_HEIGHT + HEADER)
    picture = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(picture)
    for column, title in enumerate(titles):
        _write(pen, (GAP + column * CELL_WIDTH, GAP), title, INK)
    for row, example in enumerate(examples):
        top = HEADER + row * (CELL_HEIGHT + HEADER)
        name = f"{example.subset}, {example.data_id}"[:120]
        _write(pen, (GAP, top + GAP), name, NEUTRAL)
        for column, shown in enumerate([example.query, example.gold, *example.ranked]):
            _cell(picture, pen, (GAP + column * CELL_WIDTH, top + HEADER), shown)
    with whole_file(file) as unfinished:
        picture.save(unfinished, format="PNG", optimize=True)


def _cell(
    picture: Image.Image,
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    shown: ExampleItem | None,
) -> None:
    left, top = corner
    if shown is None:
        _write(pen, (left, top), "not in the pool", NEUTRAL)
        return
    colour = NEUTRAL if shown.right is None else RIGHT if shown.right else WRONG
    pen.rectangle((left, top, left + CELL_WIDTH - GAP, top + CELL_HEIGHT - GAP), outline=colour, width=2)
    below = top + 6
    if shown.image is not None:
        thumbnail = ImageOps.contain(shown.image.convert("RGB"), (CELL_WIDTH - 3 * GAP, THUMBNAIL - 12))
        picture.paste(thumbnail, (left + 6, below))
        below = top + THUMBNAIL
    # A colour alone is not seen by everybody.
    mark = {None: "", True: "right: ", False: "wrong: "}[shown.right]
    text, font = fit_font(mark + " ".join(shown.text.split()), LETTER)
    pen.multiline_text((left + 6, below), "\n".join(_lines(text, font, CELL_WIDTH - GAP - 12)), INK, font, spacing=2)


def _write(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, colour: str) -> None:
    drawn, font = fit_font(text, LETTER)
    pen.text(corner, drawn, colour, font)


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The beginning of a text in lines of so many pixels, broken between words where there are any."""
    lines = []
    while text and len(lines) < LINES:
        more = MORE if len(lines) == LINES - 1 and font.getlength(text) > width else ""
        fits = bisect_right(range(1, len(text) + 1), width, key=lambda n: font.getlength(text[:n] + more))
        cut = fits if fits == len(text) else text.rfind(" ", 0, fits + 1)
        cut = max(1, cut if cut > 0 else fits)
        lines.append(text[:cut].rstrip() + more)
        text = text[cut:].lstrip()
    return lines
