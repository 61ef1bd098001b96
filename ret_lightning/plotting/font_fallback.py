"""Font fallback for texts of any script, with substitutes for characters that no font contains."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
from PIL import ImageFont

log = logging.getLogger(__name__)

_SUBSTITUTES = "\ufffd?"  # for missing characters: the first of these that the font contains
_BLANKS = frozenset(map(ord, " \n\t"))
_reported = False
# Fonts with a box or an empty glyph for every character; matplotlib 3.11 contains the first one.
_WITHOUT_GLYPHS = ("lastresort", "adobeblank", "unicodebmpfallback")


def fit_font(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Choose a font for a text, and replace each character that the font does not contain.

    The font is DejaVu Sans from matplotlib if it contains all characters, else the installed font with the fewest missing
    characters, such as Noto Sans CJK.

    Args:
        text: the text to render.
        size: font size in pixels.

    Returns:
        The text with replacements, of the same length, and the font.
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
    """Return font families that together contain the characters of the texts.

    Args:
        texts: the texts to render.

    Returns:
        Names for `font.family`; matplotlib renders each character in the first family that contains it.
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
    """Log characters that no installed font contains, once per process."""
    global _reported
    if _reported or not characters:
        return
    _reported = True
    first, more = min(characters), len(characters) - 1
    log.warning(
        "character %s (U+%04X)%s is in no installed font and is rendered as a box in figures; install a font that contains it, "
        "such as Noto Sans CJK",
        *(repr(chr(first))[1:-1], first, f" and {more} more" if more else ""),
    )


def _usual() -> str:
    return str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")


@lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    """Return the files of upright fonts with normal weight, sorted."""
    from matplotlib.font_manager import fontManager

    files = {font.fname for font in fontManager.ttflist if font.style == "normal" and font.weight == 400}
    return tuple(sorted(f for f in files if not Path(f).stem.lower().replace("-", "").startswith(_WITHOUT_GLYPHS)))


@cache
def _characters(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):  # the file was removed after matplotlib cached its list of fonts
        return frozenset()
