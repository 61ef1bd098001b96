"""Tests of the passage texts of the glyphs corpus, compared with unicodedata, fontTools and the tokenizer of CLIP."""

from __future__ import annotations

import doctest
import re
import unicodedata

import pytest
from fontTools import unicodedata as font_tools_unicodedata
from open_clip.tokenizer import SimpleTokenizer

from ret_lightning.data.glyphs import passage_texts
from ret_lightning.data.glyphs.passage_texts import (
    CHARACTERS,
    base_letter,
    block,
    other_case,
    passage_id,
    passage_text,
    value,
)


def test_docstring_examples():
    results = doctest.testmod(passage_texts)
    assert (results.failed, results.attempted) == (0, 2)


def _stated(character: str, key: str) -> str | None:
    """Return what follows a key such as `value` in the passage text of a character; None if the key is missing."""
    facts = passage_text(character).split(". ")[2:]
    found = [fact.removeprefix(f"{key} ") for fact in facts if fact.startswith(f"{key} ")]
    assert len(found) <= 1
    return found[0] if found else None


def test_texts_begin_with_name_and_code_point():
    for character in CHARACTERS:
        name, code_point = passage_text(character).split(". ")[:2]
        assert name == unicodedata.name(character).lower()
        assert code_point == passage_id(character)
        assert re.fullmatch(r"U\+[0-9A-F]{4}", code_point)
        assert chr(int(code_point[2:], 16)) == character


def test_texts_contain_numeric_value():
    for character in CHARACTERS:
        number, stated = unicodedata.numeric(character, None), _stated(character, "value")
        assert (stated is None) == (number is None), character
        assert stated is None or float(stated) == pytest.approx(number, abs=0.0005), character


def test_texts_contain_decomposition():
    for character in CHARACTERS:
        kind, *codes = ["", *unicodedata.decomposition(character).split()]
        if codes and codes[0].startswith("<"):
            kind, *codes = codes
        parts = "".join(chr(int(code, 16)) for code in codes)
        assert _stated(character, "like") == (parts.replace("\u2044", "/") if kind else None), character
        accented = parts and not kind and character.isalpha()
        base = unicodedata.name(parts[0]).lower().split(" ", 1)[1] if accented else None
        assert _stated(character, "base:") == base, character


def test_texts_of_symbols_contain_category():
    """Only symbols have a category, by its long Unicode name."""
    words = {"Sm": "math symbol", "Sc": "currency symbol", "So": "other symbol", "Po": "other punctuation"}
    words |= {"Ps": "open punctuation", "Pe": "close punctuation"}
    for character in CHARACTERS:
        named = [fact for fact in passage_text(character).split(". ") if fact in words.values()]
        category = unicodedata.category(character)
        assert named == ([words[category]] if category[0] in "SP" else []), character


def test_blocks_equal_those_of_fonttools():
    for character in CHARACTERS:
        assert block(character) == font_tools_unicodedata.block(character).lower()
        assert block(character) in passage_text(character).split(". ")


@pytest.mark.parametrize("character", "ɐʰ\u0500\u2025₣\u2300あ")
def test_unlisted_block_is_an_error(character: str):
    """Characters of the blocks next to the listed ones do not get the name of a listed block."""
    known = font_tools_unicodedata.block(character).lower()
    if known == "currency symbols":
        assert block(character) == known
        return
    with pytest.raises(ValueError, match="expected a character of a block"):
        block(character)


def test_other_case_is_symmetric():
    for character in CHARACTERS:
        partner = other_case(character)
        if partner is not None:
            assert {character, partner} == {character.upper(), character.lower()}
            assert other_case(partner) == character


@pytest.mark.parametrize(
    ("character", "expected"),
    [("a", "A"), ("Ω", "ω"), ("ю", "Ю"), ("Č", "č"), ("ß", None), ("5", None), ("½", None), ("$", None)],
)
def test_other_case(character: str, expected: str | None):
    assert other_case(character) == expected


@pytest.mark.parametrize(
    ("character", "expected"),
    [("é", "e"), ("Å", "A"), ("ç", "c"), ("ø", None), ("æ", None), ("e", None), ("½", None), ("ǖ", None), ("≠", None)],
)
def test_base_letter(character: str, expected: str | None):
    assert base_letter(character) == expected


@pytest.mark.parametrize(
    ("character", "expected"), [("7", "7.0"), ("²", "2.0"), ("⅔", "0.667"), ("⅞", "0.875"), ("x", None)]
)
def test_value(character: str, expected: str | None):
    assert value(character) == expected


def test_texts_are_distinct_ascii_and_short():
    texts = [passage_text(character) for character in CHARACTERS]
    assert len(set(texts)) == len(texts)
    assert all(text.isascii() for text in texts)  # the character itself would identify the image
    tokenizer = SimpleTokenizer()
    longest = max(texts, key=lambda text: len(tokenizer.encode(text)))
    assert len(tokenizer.encode(longest)) + 2 <= 32, longest  # start and end tokens
