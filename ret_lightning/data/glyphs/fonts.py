"""Which fonts draw the glyphs corpus, which of them train, validate and test, and how one character is drawn.

The split. Validation and test show faces that training never shows, and that look different:

- DejaVu Sans Mono and DejaVu Serif are trained in regular and slanted; their bold styles are held out. The upright bold
  validates, the slanted bold tests.
- STIX (a Times) is trained in its italics, whose letters are other shapes (`a`, `f`, `v`, much of Cyrillic); the upright
  bold validates, the upright regular tests.
- Of Computer Modern, training has roman, italic and typewriter; bold validates; sans serif, the most distant, tests.

Fonts borrow from each other: a paragraph sign or a plus is often one outline in several. A held-out drawing that looks
like a training drawing of its character would test memory and is not made (`LIKE_TRAINING`).

Left out: matplotlib's size variants, its maths and symbol fonts, LastResort, and the two DejaVu Display fonts, which
hold only dashes, quotation marks and large operators.
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
PASSAGE_FONT = "DejaVuSans"  # draws the passages' images, for all splits

# The Computer Modern fonts keep TeX's encodings: their character maps send `<` to an inverted exclamation mark, `"` to
# a closing quotation mark, U+00A3 to a theta, and cmti10 draws a pound sign for the dollar under the name "dollar".
# These are the code points that all of them draw as Unicode means them.
_COMPUTER_MODERN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#%&()+?@[]")
# Closer to some training font's drawing of the same character than any two characters of the corpus are to each other
# (`tests/data/glyphs/test_fonts.py` measures both).
LIKE_TRAINING = {
    "DejaVuSansMono-Bold": "¶¹²³",
    "DejaVuSerif-Bold": "#+¶±≠",
    "STIXGeneralBol": "%",
    "DejaVuSansMono-BoldOblique": "¶¹²³",
    "DejaVuSerif-BoldItalic": "#+¶±≠",
    "STIXGeneral": "ir1!%@©",
    "cmss10": "FIT1!#+",
}

# Geometry, in parts of the image's side. The em and the baseline are the same for every character and font: size and
# height are all that tells `c` from `C` and `2` from its superscript. All drawings stay inside: the widest is DejaVu
# Serif Bold Italic's Sha (1.33 em), the tallest STIX's radical (0.97 em above the baseline and 0.26 em below).
EM = 0.72
BASELINE = 0.76
# Drawn this many times larger, then averaged down: grey levels of area coverage, free of the hinting that moves stems
# to whole pixels at small sizes.
SUPERSAMPLING = 4


class Drawing(NamedTuple):
    """One PNG file on disk: its character, size in bytes and SHA-256 (hex)."""

    character: str
    size: int
    sha256: str


class FontJob(NamedTuple):
    """What a worker process is asked for: these characters in this font, as PNG files in this folder."""

    font_file: Path
    characters: tuple[str, ...]
    folder: Path
    image_size: int


def font_split() -> dict[str, tuple[str, ...]]:
    """The fonts of each split, by file name without `.ttf`: {"train": ..., "val": ..., "test": ...}, disjoint."""
    return dict(FONTS)


def font_file(font: str) -> Path:
    """Where matplotlib keeps the font.

    Raises:
        DataError: this matplotlib does not ship it (some distributions strip its fonts).
    """
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    if not path.is_file():
        raise DataError(
            f"{path}: this font of the glyphs corpus is missing: reinstall matplotlib with pip",
            code="glyph-font-missing",
            path=path,
        )
    return path


def select_drawable(font: str, characters: Iterable[str]) -> tuple[str, ...]:
    """Those of the characters that the corpus may show in this font.

    The font must have a glyph for them, the right one, and a held-out font one that training has not shown already.
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
    """The drawing's path relative to the image folder, as the JSONL files name it: `DejaVuSans/U+0041.png`."""
    return f"{font}/{image_name(character)}"


def image_name(character: str) -> str:
    return f"U+{ord(character):04X}.png"


def draw_font(job: FontJob) -> list[Drawing]:
    """Draws a job's characters, white on black in 8-bit grey, leaving out what comes out blank.

    Runs in worker processes: a function of the module, with a job and a result that can be pickled.
    """
    from PIL import ImageFont

    side = job.image_size * SUPERSAMPLING
    # The basic layout is in every Pillow; the default one depends on whether libraqm is installed.
    font = ImageFont.truetype(str(job.font_file), size=EM * side, layout_engine=ImageFont.Layout.BASIC)
    job.folder.mkdir(parents=True, exist_ok=True)
    drawings = []
    for character in job.characters:
        png = _png(font, character, side)
        if png is None:
            continue
        (job.folder / image_name(character)).write_bytes(png)
        drawings.append(Drawing(character, len(png), hashlib.sha256(png).hexdigest()))
    return drawings


def _png(font: FreeTypeFont, character: str, side: int) -> bytes | None:
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (3 * side, side), 0)
    ImageDraw.Draw(canvas).text((side, round(BASELINE * side)), character, fill=255, font=font, anchor="ls")
    ink = canvas.getbbox()
    if ink is None:
        return None
    # Centred by its ink: where a font puts the pen says nothing about the character.
    left = (ink[0] + ink[2] - side) // 2
    image = canvas.crop((left, 0, left + side, side))
    file = io.BytesIO()
    image.reduce(SUPERSAMPLING).save(file, format="PNG")
    return file.getvalue()
