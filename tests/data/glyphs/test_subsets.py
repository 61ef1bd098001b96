"""Tests of the rows of the glyphs subsets: questions, drawings and positives."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest

from ret_lightning.data.glyphs.corpus import CHARACTERS, font_split
from ret_lightning.data.glyphs.fonts import image_path
from ret_lightning.data.glyphs.subsets import (
    FEWEST_TRAINING_ROWS,
    KINDS,
    QUERY_CAP,
    check_coverage,
    passage_rows,
    query_rows,
    training_rows,
)
from ret_lightning.errors import DataError


def test_character_in_too_few_fonts_is_an_error():
    drawn = {font: set(CHARACTERS) for fonts in font_split().values() for font in fonts}
    check_coverage(drawn)
    for font in font_split()["train"][:6]:
        drawn[font].remove("½")
    with pytest.raises(DataError) as error:
        check_coverage(drawn)
    assert error.value.code == "glyph-fonts-too-few"
    assert error.value.values == {"character": "½", "split": "train", "found": 7, "least": 8}
    for font in font_split()["train"]:
        drawn[font].add("½")
    for font in font_split()["test"]:
        drawn[font].remove("½")
    with pytest.raises(DataError) as error:
        check_coverage(drawn)
    assert error.value.code == "glyph-fonts-too-few"
    assert error.value.values == {"character": "½", "split": "test", "found": 0, "least": 1}


@pytest.fixture(scope="module")
def drawn() -> dict[str, set[str]]:
    """Return all characters for every font."""
    return {font: set(CHARACTERS) for fonts in font_split().values() for font in fonts}


def character_of(passage_id: str) -> str:
    return chr(int(passage_id.removeprefix("U+"), 16))


ASKED_FOR = {
    "case": lambda character: character.swapcase(),
    "base": lambda character: unicodedata.normalize("NFD", character)[0],
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("split", ["val", "test"])
def test_positive_answers_the_question(name: str, split: str, drawn: dict[str, set[str]]) -> None:
    rows = query_rows(name, split, drawn, seed=0)
    assert 0 < len(rows) <= QUERY_CAP[split]
    pool = {row["passage_id"]: row for row in passage_rows(name)}
    drawn_at = {image_path(font, character): character for font in font_split()[split] for character in CHARACTERS}
    for row in rows:
        character = drawn_at[row["image_path"]]
        assert character_of(row["passage_id"]) == ASKED_FOR.get(name, lambda character: character)(character)
        assert row["passage_text"] == pool[row["passage_id"]]["passage_text"]
        assert row["instruction"] == KINDS[name].instructions[0]
    assert len({row["data_id"] for row in rows}) == len({row["image_path"] for row in rows}) == len(rows)


def test_queries_cover_most_characters_within_cap(drawn: dict[str, set[str]]) -> None:
    for split in ("val", "test"):
        rows = query_rows("name", split, drawn, seed=0)
        times = Counter(row["passage_id"] for row in rows)
        covered = min(len(CHARACTERS), QUERY_CAP[split])
        assert len(times) == covered
        assert max(times.values()) - min(times.values()) <= 1


def test_training_rows_use_training_drawings_only(drawn: dict[str, set[str]]) -> None:
    rows = training_rows(drawn, seed=0)
    paths = {image_path(font, character) for font in font_split()["train"] for character in CHARACTERS}
    assert {row["image_path"] for row in rows} == paths
    counts = Counter(row["subset"] for row in rows)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) > FEWEST_TRAINING_ROWS / 2
    first = [row["subset"] for row in rows[:200]]
    assert set(first) == set(KINDS)  # shuffled together
    assert rows == training_rows(drawn, seed=0)
    assert rows != training_rows(drawn, seed=1)


def test_training_rows_have_distinct_phrasings(drawn: dict[str, set[str]]) -> None:
    asked = Counter(
        (row["subset"], row["image_path"], row["instruction"], row["question"]) for row in training_rows(drawn, seed=0)
    )
    assert set(asked.values()) == {1}


@pytest.mark.parametrize("name", KINDS)
def test_pool_contains_every_character_once(name: str) -> None:
    rows = list(passage_rows(name))
    assert [character_of(row["passage_id"]) for row in rows] == list(CHARACTERS)
    has_image = {row["passage_image_path"] is not None for row in rows}
    assert has_image == {name in ("look", "base", "codepoint", "value")}
