"""Fonts for texts of any script: the installed font that has most of a text's characters, and substitutes for the rest."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
from PIL import ImageFont

log = logging.getLogger(__name__)

_SUBSTITUTES = "\ufffd?"  # for a character that no font has: the first of these that the chosen font has
_BLANKS = frozenset(map(ord, " \n\t"))
_reported = False
# Fonts that draw a box or nothing for every character; matplotlib 3.11 ships the first one.
_WITHOUT_GLYPHS = ("lastresort", "adobeblank", "unicodebmpfallback")


def fit_font(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Choose a font for a text, and replace each character that the font lacks.

    The font is DejaVu Sans, which matplotlib ships. Where it lacks characters of the text, it is the installed font that
    lacks the fewest, such as Noto Sans CJK.

    Args:
        text: to be drawn.
        size: of the font, pixels.

    Returns:
        The text to draw, of the same length, and the font.
    """
    wanted = frozenset(map(ord, text)) - _BLANKS
    best, fewest = _usual(), len(wanted - _characters(_usual()))
    for file in _installed() if fewest else ():
        missing = len(wanted - _characters(file))
        if missing < fewest:
            best, fewest = file, missing
        if not fewest:
            break
    if fewest:
        _report_missing(wanted.difference(_characters(_usual()), *map(_characters, _installed())))
    known = _characters(best) | _BLANKS
    substitute = next((c for c in _SUBSTITUTES if ord(c) in known), " ")
    return "".join(c if ord(c) in known else substitute for c in text), ImageFont.truetype(best, size)


def families_for(texts: Iterable[str]) -> list[str]:
    """Names of font families for matplotlib, which takes each character from the first family that has it.

    Args:
        texts: to be drawn.
    """
    from matplotlib.ft2font import FT2Font

    missing = frozenset(map(ord, "".join(texts))) - _BLANKS - _characters(_usual())
    families = ["DejaVu Sans"]
    for file in _installed() if missing else ():
        if missing & _characters(file):
            families.append(FT2Font(file).family_name)
            missing -= _characters(file)
        if not missing:
            break
    _report_missing(missing)
    return families


def _report_missing(characters: frozenset[int]) -> None:
    """Log characters that no installed font has, once per process."""
    global _reported
    if _reported or not characters:
        return
    _reported = True
    first, more = min(characters), len(characters) - 1
    log.warning(
        "no installed font has the character %s (U+%04X)%s: figures show a box in its place; install a font that has it, such "
        "as Noto Sans CJK",
        *(repr(chr(first))[1:-1], first, f" and {more} more" if more else ""),
    )


def _usual() -> str:
    return str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")


@lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    """Upright fonts of normal weight that have glyphs, sorted by file."""
    from matplotlib.font_manager import fontManager

    files = {font.fname for font in fontManager.ttflist if font.style == "normal" and font.weight == 400}
    return tuple(sorted(f for f in files if not Path(f).stem.lower().replace("-", "").startswith(_WITHOUT_GLYPHS)))


@cache
def _characters(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):  # matplotlib caches its list of fonts, and this file was removed since
        return frozenset()
