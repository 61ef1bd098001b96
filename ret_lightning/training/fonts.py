"""Fonts for the texts of pictures, which may be of any writing: the one that has most of a text's letters."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import matplotlib
from PIL import ImageFont


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has more of Unicode than Pillow's own; where it lacks letters of the text,
    the installed font that lacks the fewest, such as Noto Sans CJK.

    Args:
        text: to be drawn.
        size: of the font, pixels.
    """
    wanted = frozenset(map(ord, text)) - frozenset(map(ord, " \n\t"))
    best, fewest = _usual(), len(wanted - _letters(_usual()))
    for file in _installed() if fewest else ():
        missing = len(wanted - _letters(file))
        if missing < fewest:
            best, fewest = file, missing
        if not fewest:
            break
    return ImageFont.truetype(best, size)


def _usual() -> str:
    return str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")


@lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    """Upright fonts of usual weight, in an order that does not change."""
    from matplotlib.font_manager import fontManager

    return tuple(sorted({font.fname for font in fontManager.ttflist if font.style == "normal" and font.weight == 400}))


@cache
def _letters(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):  # the list of fonts is kept in a cache, and this one has been removed meanwhile
        return frozenset()
