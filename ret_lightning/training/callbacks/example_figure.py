"""Draw example queries and their retrieved passages into one image, one row per query."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ret_lightning.plotting.font_fallback import fit_font
from ret_lightning.runtime.atomic_files import whole_file
from ret_lightning.training.callbacks.example_types import Example, ExampleItem

# In pixels.
CELL_WIDTH, CELL_HEIGHT, THUMBNAIL, GAP, HEADER = 190, 178, 96, 8, 28
POSITIVE, NEGATIVE, NEUTRAL, TEXT_COLOR, BACKGROUND = "#1a7f37", "#cf222e", "#8c959f", "#1f2328", "#ffffff"
FONT_HEIGHT = 11
LINES = 5  # of text below an image
ELLIPSIS = " ..."


def draw_examples(examples: Sequence[Example], top_k: int, file: Path) -> None:
    """Draw examples into a PNG file.

    Each row shows the query, its gold passage and the retrieved passages; positive passages have a green frame, the
    others a red one.

    Args:
        examples: the examples, one row each.
        top_k: number of columns of retrieved passages.
        file: the PNG file to write; an existing file is replaced atomically.
    """
    titles = ["query", "gold", *(f"rank {rank}" for rank in range(1, top_k + 1))]
    size = len(titles) * CELL_WIDTH + GAP, HEADER + len(examples) * (CELL_HEIGHT + HEADER)
    picture = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(picture)
    for column, title in enumerate(titles):
        _draw_text(pen, (GAP + column * CELL_WIDTH, GAP), title, TEXT_COLOR)
    for row, example in enumerate(examples):
        top = HEADER + row * (CELL_HEIGHT + HEADER)
        name = f"{example.subset}, {example.data_id}"[:120]
        _draw_text(pen, (GAP, top + GAP), name, NEUTRAL)
        for column, item in enumerate([example.query, example.gold, *example.ranked]):
            _draw_item(picture, pen, (GAP + column * CELL_WIDTH, top + HEADER), item)
    with whole_file(file) as unfinished:
        picture.save(unfinished, format="PNG", optimize=True)


def _draw_item(
    picture: Image.Image,
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    item: ExampleItem | None,
) -> None:
    left, top = corner
    if item is None:
        _draw_text(pen, (left, top), "not in the candidate pool", NEUTRAL)
        return
    color = NEUTRAL if item.is_positive is None else POSITIVE if item.is_positive else NEGATIVE
    pen.rectangle((left, top, left + CELL_WIDTH - GAP, top + CELL_HEIGHT - GAP), outline=color, width=2)
    below = top + 6
    if item.image is not None:
        thumbnail = ImageOps.contain(item.image.convert("RGB"), (CELL_WIDTH - 3 * GAP, THUMBNAIL - 12))
        picture.paste(thumbnail, (left + 6, below))
        below = top + THUMBNAIL
    # The text repeats the color, for readers who cannot tell the colors apart.
    mark = {None: "", True: "positive: ", False: "negative: "}[item.is_positive]
    text, font = fit_font(mark + " ".join(item.text.split()), FONT_HEIGHT)
    pen.multiline_text(
        (left + 6, below), "\n".join(_wrap_text(text, font, CELL_WIDTH - GAP - 12)), TEXT_COLOR, font, spacing=2
    )


def _draw_text(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, color: str) -> None:
    text, font = fit_font(text, FONT_HEIGHT)
    pen.text(corner, text, color, font)


def _wrap_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Wrap the beginning of a text into at most LINES lines of `width` pixels, between words where possible."""
    lines: list[str] = []
    while text and len(lines) < LINES:
        suffix = ELLIPSIS if len(lines) == LINES - 1 and font.getlength(text) > width else ""
        fits = bisect_right(range(1, len(text) + 1), float(width), key=lambda n: font.getlength(text[:n] + suffix))
        cut = fits if fits == len(text) else text.rfind(" ", 0, fits + 1)
        cut = max(1, cut if cut > 0 else fits)
        lines.append(text[:cut].rstrip() + suffix)
        text = text[cut:].lstrip()
    return lines
