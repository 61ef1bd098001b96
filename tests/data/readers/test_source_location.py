"""Lines of places that were read by their byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.data.readers import source_location
from ret_lightning.data.readers.source_location import BytePlace, Place, lines_at, numbered
from tests.support.row_files import write


def test_places_read_like_those_of_other_tools(tmp_path: Path) -> None:
    text = write(tmp_path / "a.jsonl")
    offset = text.read_bytes().index(b"wit_5") - len('{"data_id": "')
    assert str(BytePlace(text, offset)) == str(Place(text, 6)) == f"{text}:6"
    assert str(Place(Path("a.parquet"), 6)) == "a.parquet, row 6"


def test_numbers_of_lines_at_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b"x" * (i * 7 % 23) + b"\n" for i in range(60)]
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"".join(lines))
    starts = [sum(map(len, lines[:i])) for i in range(60)]
    expected = {start: number for number, start in enumerate(starts, 1)}
    wanted = starts[::-3]  # unordered, and not all of them
    for block in (1 << 24, 5):
        monkeypatch.setattr(source_location, "_BLOCK", block)
        assert lines_at(file, wanted) == {start: expected[start] for start in wanted}
    assert lines_at(file, []) == {}


def test_places_of_several_files_are_numbered_in_their_order(tmp_path: Path) -> None:
    one, other = (tmp_path / name for name in ("a.jsonl", "b.jsonl"))
    one.write_text("{}\n{}\n{}\n")
    other.write_text("{}\n\n\n{}\n")
    places = [BytePlace(one, 6), Place(one, 9), BytePlace(other, 5), BytePlace(one, 0)]
    assert numbered(places) == [Place(one, 3), Place(one, 9), Place(other, 4), Place(one, 1)]
    assert [place.line for place in places] == [3, 9, 4, 1]
    assert numbered([]) == []
