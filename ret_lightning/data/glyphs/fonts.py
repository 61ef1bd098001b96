"""The fonts of the glyphs corpus, their split into training, validation and test, and the drawing of characters.

Validation and test use fonts that training does not use and that look different:

- DejaVu Sans Mono and DejaVu Serif: training has the regular and slanted styles, validation the upright bold, and test the
  slanted bold.
- STIX (similar to Times): training has the italics, whose letters have different shapes (`a`, `f`, `v`, much of Cyrillic),
  validation the upright bold, and test the upright regular.
- Computer Modern: training has roman, italic and typewriter, validation bold, and test sans serif, the most different one.

Fonts share outlines: a paragraph sign or a plus is often identical in several fonts. A held-out drawing that looks like a
training drawing of the same character would test memorization, so it is excluded (`LIKE_TRAINING`).

Other fonts of matplotlib are not used: size variants, mathematics and symbol fonts, LastResort, and the two DejaVu Display
fonts, which contain only dashes, quotation marks and large operators.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ret_lightning.errors import DataError

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

FONTS: dict[str, tuple[str, ...]] = {
    "train": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSans-BoldOblique",
        "DejaVuSansMono",
        "DejaVuSansMono-Oblique",
        "DejaVuSerif",
        "DejaVuSerif-Italic",
        "STIXGeneralItalic",
        "STIXGeneralBolIta",
        "cmr10",
        "cmti10",
        "cmtt10",
    ),
    "val": ("DejaVuSansMono-Bold", "DejaVuSerif-Bold", "STIXGeneralBol", "cmb10"),
    "test": ("DejaVuSansMono-BoldOblique", "DejaVuSerif-BoldItalic", "STIXGeneral", "cmss10"),
}
PASSAGE_FONT = "DejaVuSans"  # font of the passage images of all splits

# Computer Modern fonts use TeX encodings, which map `<`, `"`, U+00A3 and others to different characters. These are the
# code points that all of them draw as in Unicode.
_COMPUTER_MODERN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#%&()+?@[]")
# Drawings closer to a training drawing of the same character than any two characters of the corpus are to each other, as
# measured in `tests/data/glyphs/test_fonts.py`.
LIKE_TRAINING = {
    "DejaVuSansMono-Bold": "¶¹²³",
    "DejaVuSerif-Bold": "#+¶±≠",
    "STIXGeneralBol": "%",
    "DejaVuSansMono-BoldOblique": "¶¹²³",
    "DejaVuSerif-BoldItalic": "#+¶±≠",
    "STIXGeneral": "ir1!%@©",
    "cmss10": "FIT1!#+",
}

# Font size and baseline, as fractions of the image's side; equal for all characters and fonts, because only the size
# distinguishes `c` from `C`. No drawing is clipped: the widest is 1.33 em, the tallest 0.97 em above the baseline.
EM = 0.72
BASELINE = 0.76
# Characters are drawn this many times larger and averaged down, which avoids the hinting of small font sizes.
SUPERSAMPLING = 4


class Drawing(NamedTuple):
    """A PNG file on disk: its character, size in bytes and SHA-256 (hex)."""

    character: str
    size: int
    sha256: str


class FontJob(NamedTuple):
    """The task of a worker process: draw characters in a font as PNG files of `image_size` pixels in a folder."""

    font_file: Path
    characters: tuple[str, ...]
    folder: Path
    image_size: int


def font_split() -> dict[str, tuple[str, ...]]:
    """Return the fonts of the splits `train`, `val` and `test`, by file name without `.ttf`; the splits are disjoint."""
    return dict(FONTS)


def font_file(font: str) -> Path:
    """Return the path of a font of matplotlib.

    Args:
        font: file name without `.ttf`.

    Raises:
        DataError: if the installed matplotlib does not include it; some distributions remove the fonts.
    """
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; the glyphs corpus needs this font of matplotlib; reinstall matplotlib with pip",
            code="glyph-font-missing",
            path=path,
        )
    return path


def select_drawable(font: str, characters: Iterable[str]) -> tuple[str, ...]:
    """Select the characters that the corpus draws in a font.

    The font must have the correct glyph of a character. In a font of validation or test, the glyph must also differ from
    those of the training fonts.

    Args:
        font: file name without `.ttf`.
        characters: characters to select from.
    """
    from matplotlib.ft2font import FT2Font

    face = FT2Font(str(font_file(font)))
    return tuple(
        character
        for character in characters
        if face.get_char_index(ord(character)) != 0  # 0 is .notdef, the empty box
        and (character in _COMPUTER_MODERN or not font.startswith("cm"))
        and character not in LIKE_TRAINING.get(font, "")
    )


def image_path(font: str, character: str) -> str:
    """Return the path of a drawing relative to the image folder, such as `DejaVuSans/U+0041.png`."""
    return f"{font}/{_image_name(character)}"


def _image_name(character: str) -> str:
    return f"U+{ord(character):04X}.png"


def draw_font(job: FontJob) -> list[Drawing]:
    """Draw the characters of a job in white on black, as 8-bit greyscale PNG files; blank drawings are skipped.

    Args:
        job: the job, which can be pickled for worker processes.
    """
    from PIL import ImageFont

    side = job.image_size * SUPERSAMPLING
    # The basic layout is part of every Pillow; the default one depends on whether libraqm is installed.
    font = ImageFont.truetype(str(job.font_file), size=EM * side, layout_engine=ImageFont.Layout.BASIC)
    job.folder.mkdir(parents=True, exist_ok=True)
    drawings = []
    for character in job.characters:
        png = _png(font, character, side)
        if png is None:
            continue
        (job.folder / _image_name(character)).write_bytes(png)
        drawings.append(Drawing(character, len(png), hashlib.sha256(png).hexdigest()))
    return drawings


def _png(font: FreeTypeFont, character: str, side: int) -> bytes | None:
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (3 * side, side), 0)
    ImageDraw.Draw(canvas).text((side, round(BASELINE * side)), character, fill=255, font=font, anchor="ls")
    ink = canvas.getbbox()
    if ink is None:
        return None
    # Centred by its pixels, because the pen position depends on the font.
    left = (ink[0] + ink[2] - side) // 2
    image = canvas.crop((left, 0, left + side, side))
    file = io.BytesIO()
    image.reduce(SUPERSAMPLING).save(file, format="PNG")
    return file.getvalue()
