"""The project's texts use the field's words: no retired phrase is left."""

from __future__ import annotations

import pytest

from tests.support.retired_phrases import RETIRED, retired_in, tracked_files


def test_no_file_has_a_retired_phrase() -> None:
    found = [(str(file), *each) for file in tracked_files() for each in retired_in(file.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("The run goes on at step 3.", "goes on"),
        ("x\nThe file beside it", "beside"),
        ("ret-index retrieval.cells=4", "retrieval.cells="),
        ("val/index/agreement@10", "agreement@"),
    ],
)
def test_retired_phrase_is_found_with_its_line(text: str, phrase: str) -> None:
    ((line, found, use),) = retired_in(text)
    assert (line, found) == (len(text.splitlines()), phrase)
    assert use in RETIRED.values()


def test_ordinary_words_are_allowed() -> None:
    assert retired_in("besides, a sample of codes, goes once, standing, retrieval.nlist=4") == []
