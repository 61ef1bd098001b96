"""Choice of fonts by the characters that they contain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
from matplotlib.ft2font import FT2Font

from ret_lightning.plotting import font_fallback
from ret_lightning.plotting.font_fallback import families_for, fit_font

FOLDER = Path(matplotlib.get_data_path()) / "fonts/ttf"


def letters_of(name: str) -> set[int]:
    return set(FT2Font(str(FOLDER / name)).get_charmap())


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    files = (str(FOLDER / "cmr10.ttf"), str(FOLDER / "STIXGeneral.ttf"))
    monkeypatch.setattr(font_fallback, "_installed", lambda: files)


ONLY_STIX = "".join(map(chr, sorted(letters_of("STIXGeneral.ttf") - letters_of("DejaVuSans.ttf"))[-5:]))
NO_FONT = "\U0010fffd"


@pytest.mark.parametrize(
    ("text", "drawn", "font"),
    [
        ("A question, and é ü ж?", None, "DejaVu Sans"),
        (f"{ONLY_STIX} of it", None, "STIXGeneral"),
        (f"a {NO_FONT} b", "a \ufffd b", "DejaVu Sans"),
        (f"{ONLY_STIX} and {NO_FONT}", f"{ONLY_STIX} and \ufffd", "STIXGeneral"),
    ],
)
@pytest.mark.usefixtures("installed")
def test_missing_character_is_replaced_alone(text: str, drawn: str | None, font: str) -> None:
    found, chosen = fit_font(text, 11)
    assert found == (drawn or text)
    assert chosen.getname()[0] == font


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("draw", [lambda text: fit_font(text, 11), lambda text: families_for([text])])
def test_missing_character_is_reported_once(
    draw: Callable[[str], object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(font_fallback, "_reported", False)
    draw(f"{ONLY_STIX} of it")
    assert not caplog.messages
    for _ in range(2):
        draw(f"a {NO_FONT} b")
    assert ["U+10FFFD" in message for message in caplog.messages] == [True]


def test_fonts_without_glyphs_are_ignored() -> None:
    assert (FOLDER / "DejaVuSans.ttf").exists()
    assert not [file for file in font_fallback._installed() if "lastresort" in file.lower()]
    assert fit_font(f"two words {NO_FONT}", 11)[0] == "two words \ufffd"


@pytest.mark.usefixtures("installed")
def test_families_cover_each_character() -> None:
    assert families_for(["plain", "é"]) == ["DejaVu Sans"]
    assert families_for(["plain", f"{ONLY_STIX[0]}{NO_FONT}"]) == ["DejaVu Sans", "STIXGeneral"]


def test_removed_font_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(font_fallback, "_installed", lambda: ("/gone.ttf",))
    assert fit_font(NO_FONT, 11)[1].getname()[0] == "DejaVu Sans"
