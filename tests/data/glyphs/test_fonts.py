"""Tests of the fonts and drawings of the glyphs corpus, with fontTools and the rasterizer of matplotlib as references."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from fontTools import agl
from fontTools.ttLib import TTFont
from matplotlib.ft2font import FT2Font, LoadFlags
from PIL import Image

from ret_lightning.data.glyphs.fonts import (
    BASELINE,
    EM,
    FONTS,
    LIKE_TRAINING,
    PASSAGE_FONT,
    FontJob,
    draw_font,
    font_file,
    font_split,
    image_path,
    select_drawable,
)
from ret_lightning.data.glyphs.passage_texts import CHARACTERS
from ret_lightning.errors import DataError

SIZE = 40
ALL_FONTS = [font for fonts in FONTS.values() for font in fonts]
# Two drawings look alike below this sum of squared differences, at 40 x 40 pixels from 0 to 1. The closest pair of the
# corpus is at 4.9 (A and Lambda in STIX bold italic), the most distant excluded pair at 3.9.
ALIKE = 4.5


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """Draw all characters in all fonts: {font: {character: (40, 40) float64 pixels from 0 to 1, read from the PNG}}."""
    folder = tmp_path_factory.mktemp("drawings")
    return {
        font: {character: _ink(folder / image_path(font, character)) for character in _draw(font, CHARACTERS, folder)}
        for font in ALL_FONTS
    }


def _draw(font: str, characters: str, folder: Path) -> list[str]:
    job = FontJob(font_file(font), select_drawable(font, characters), folder / font, SIZE)
    return [drawing.character for drawing in draw_font(job)]


def _ink(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (SIZE, SIZE))
        return np.asarray(image, dtype=np.float64) / 255


@cache
def _font_tools(font: str) -> TTFont:
    return TTFont(font_file(font))


def test_splits_are_disjoint():
    assert font_split() == FONTS
    assert list(FONTS) == ["train", "val", "test"]
    assert set(LIKE_TRAINING) <= {*FONTS["val"], *FONTS["test"]}
    assert len(ALL_FONTS) == len(set(ALL_FONTS))
    assert [len(FONTS[split]) for split in FONTS] == [13, 4, 4]
    assert PASSAGE_FONT in FONTS["train"]


@pytest.mark.parametrize("font", ALL_FONTS)
def test_glyph_name_matches_character(font: str):
    """The name of the glyph is an independent reference: in the Adobe Glyph List, it is that of the character."""
    names = _font_tools(font).getBestCmap()
    # The list maps these names to the mathematical variants of the characters.
    variants = {"\u2206": "Δ", "\u2126": "Ω", "\u00b5": "μ"}
    for character in select_drawable(font, CHARACTERS):
        named = agl.toUnicode(names[ord(character)])
        assert variants.get(named, named) == character, f"{font} {names[ord(character)]}"


def test_computer_modern_wrong_code_points_are_excluded():
    wrong = "<>\"'\\^_`{|}~$£¥Δ"
    for font in ("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"):
        assert select_drawable(font, wrong) == ()
    names = _font_tools("cmr10").getBestCmap()
    assert (names[ord("<")], names[ord("£")]) == ("exclamdown", "Theta")  # the wrong glyphs


def test_missing_glyphs_and_blank_drawings_are_excluded(tmp_path: Path):
    assert select_drawable("DejaVuSans", "A\u4e2d\ue000\u00a0") == ("A", "\u00a0")  # no CJK, no private use area
    assert _draw("DejaVuSans", "A\u00a0B", tmp_path) == ["A", "B"]
    assert sorted(path.name for path in (tmp_path / "DejaVuSans").iterdir()) == ["U+0041.png", "U+0042.png"]


def test_every_character_is_in_all_splits(drawings):
    for character in CHARACTERS:
        fonts = {split: [font for font in FONTS[split] if character in drawings[font]] for split in FONTS}
        assert len(fonts["train"]) >= 8, character
        assert fonts["val"], character
        assert fonts["test"], character


@pytest.mark.parametrize("font", ALL_FONTS)
def test_size_and_position_match_the_outline(font: str, drawings):
    """The drawn area matches the outline of fontTools at the fixed em size and baseline; it is centred and not clipped."""
    tables = _font_tools(font)
    glyphs = tables.getBestCmap()
    scale = EM * SIZE / tables["head"].unitsPerEm
    for character, ink in drawings[font].items():
        outline = tables["glyf"][glyphs[ord(character)]]
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        pixel = 1.5  # tolerance for partially covered pixels and hinting
        top, bottom = BASELINE * SIZE - outline.yMax * scale, BASELINE * SIZE - outline.yMin * scale
        assert rows[0] == pytest.approx(top, abs=pixel), character
        assert rows[-1] + 1 == pytest.approx(bottom, abs=pixel), character
        width = (outline.xMax - outline.xMin) * scale
        assert columns[0] == pytest.approx((SIZE - width) / 2, abs=pixel), character
        assert columns[-1] + 1 == pytest.approx((SIZE + width) / 2, abs=pixel), character
        assert min(top, SIZE - bottom, SIZE - width) > 0, f"{character} is clipped"


@pytest.mark.parametrize("font", ALL_FONTS)
def test_drawings_match_rasterizer_of_matplotlib(font: str, drawings):
    """The reference is drawn by the FreeType of matplotlib without hinting, eight times larger and averaged down."""
    factor = 8
    face = FT2Font(str(font_file(font)))
    face.set_size(EM * SIZE * factor, 72)
    third = list(drawings[font].items())[
        ALL_FONTS.index(font) % 3 :: 3
    ]  # a third of the characters per font, for speed
    for character, ink in third:
        face.set_text(character, 0.0, flags=LoadFlags.NO_HINTING)
        face.draw_glyphs_to_bitmap(antialiased=True)
        large = _trim(np.asarray(face.get_image()) / 255)
        drawn = _trim(ink)
        differences = []
        for y, x in 2 * np.argwhere(np.ones((4, 4))):  # offsets of the large image within a small pixel
            shape = drawn.shape[0] * factor - y, drawn.shape[1] * factor - x
            aligned = np.zeros(shape)
            visible = large[: shape[0], : shape[1]]
            aligned[: visible.shape[0], : visible.shape[1]] = visible
            blocks = np.pad(aligned, ((y, 0), (x, 0))).reshape(drawn.shape[0], factor, drawn.shape[1], factor)
            differences.append(np.abs(blocks.mean(axis=(1, 3)) - drawn).sum())
        assert min(differences) < 0.3 * drawn.sum(), f"{character}: {min(differences) / drawn.sum():.3f}"


def _trim(ink: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _closest(ink: np.ndarray) -> np.ndarray:
    """Return the (n, n) squared differences of (n, 40, 40) drawings, minimal over shifts of one pixel; diagonal infinite."""
    flat = ink.reshape(len(ink), -1)
    norms = (flat**2).sum(axis=1)
    least = np.full((len(ink), len(ink)), np.inf)
    for y in (-1, 0, 1):
        for x in (-1, 0, 1):
            shifted = np.roll(ink, (y, x), axis=(1, 2)).reshape(
                len(ink), -1
            )  # the margins are blank, so no pixel wraps around
            least = np.minimum(least, norms[:, None] + norms[None, :] - 2 * flat @ shifted.T)
    np.fill_diagonal(least, np.inf)
    return least


@pytest.mark.parametrize("font", ALL_FONTS)
def test_no_two_characters_look_alike(font: str, drawings):
    characters = list(drawings[font])
    least = _closest(np.stack(list(drawings[font].values())))
    first, second = np.unravel_index(least.argmin(), least.shape)
    assert least.min() > ALIKE, f"{characters[first]} and {characters[second]} differ by {least.min():.1f}"


@pytest.mark.parametrize(
    ("font", "pair"),
    [("DejaVuSans", "Il"), ("DejaVuSans", "μµ"), ("DejaVuSerif-Italic", "uи"), ("STIXGeneral", "ШЩ"),
     ("STIXGeneralBol", "шщ"), ("DejaVuSerif", "AΑ"), ("DejaVuSansMono", "aа"), ("STIXGeneral", "oο")],
)  # fmt: skip
def test_excluded_characters_look_alike(font: str, pair: str, tmp_path: Path):
    """The second character of each pair is excluded because it looks like the first one."""
    assert pair[0] in CHARACTERS
    assert pair[1] not in CHARACTERS
    assert _draw(font, pair, tmp_path) == list(pair)
    ink = np.stack([_ink(tmp_path / image_path(font, character)) for character in pair])
    assert _closest(ink).min() < ALIKE


@pytest.mark.parametrize("font", FONTS["val"] + FONTS["test"])
def test_held_out_drawings_differ_from_training_drawings(font: str, drawings, tmp_path: Path):
    """The excluded drawings look like a training drawing, by the threshold for distinct characters."""
    missing = LIKE_TRAINING.get(font, "")
    draw_font(FontJob(font_file(font), tuple(missing), tmp_path / font, SIZE))
    for character in CHARACTERS:
        if character in missing:
            ink = _ink(tmp_path / image_path(font, character))
        elif character in drawings[font]:
            ink = drawings[font][character]
        else:
            continue
        seen = [drawings[other][character] for other in FONTS["train"] if character in drawings[other]]
        least = _closest(np.stack([ink, *seen]))[0].min()
        assert (least < ALIKE) == (character in missing), f"{character}: {least:.2f}"


def test_characters_are_distinct():
    assert len(CHARACTERS) == len(set(CHARACTERS)) >= 150
    assert all(unicodedata.normalize("NFC", character) == character for character in CHARACTERS)


def test_missing_font_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError) as error:
        font_file("cmr10")
    assert (error.value.code, error.value.path) == ("glyph-font-missing", tmp_path / "fonts" / "ttf" / "cmr10.ttf")
    assert "reinstall matplotlib" in error.value.message
