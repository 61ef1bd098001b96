"""Example queries as one picture: a row a query; green frames stand around right passages, red ones around wrong ones."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ret_lightning.atomic import whole_file
from ret_lightning.training.examples import Example, Shown

# Pixels.
CELL_WIDTH, CELL_HEIGHT, THUMBNAIL, GAP, HEADER = 190, 178, 96, 8, 28
RIGHT, WRONG, NEUTRAL, INK, PAPER = "#1a7f37", "#cf222e", "#8c959f", "#1f2328", "#ffffff"
LETTERS, LINES = 27, 5  # of text under a picture


def draw(examples: Sequence[Example], top_k: int, file: Path) -> None:
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
    # It ships with matplotlib, and has more of Unicode than Pillow's own.
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 11)
    for column, title in enumerate(titles):
        pen.text((GAP + column * CELL_WIDTH, GAP), title, INK, font)
    for row, example in enumerate(examples):
        top = HEADER + row * (CELL_HEIGHT + HEADER)
        pen.text((GAP, top + GAP), f"{example.subset}, {example.data_id}"[:120], NEUTRAL, font)
        for column, shown in enumerate([example.query, example.gold, *example.ranked]):
            _cell(picture, pen, font, (GAP + column * CELL_WIDTH, top + HEADER), shown)
    with whole_file(file) as unfinished:
        picture.save(unfinished, format="PNG", optimize=True)


def _cell(
    picture: Image.Image,
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    corner: tuple[int, int],
    shown: Shown | None,
) -> None:
    left, top = corner
    if shown is None:
        pen.text((left, top), "not in the pool", NEUTRAL, font)
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
    text = mark + " ".join(shown.text.split())
    lines = textwrap.wrap(text, LETTERS, max_lines=LINES, placeholder=" ...")
    pen.multiline_text((left + 6, below), "\n".join(lines), INK, font, spacing=2)
