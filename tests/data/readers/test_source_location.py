"""Line numbers of source locations."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.data.readers import source_location
from ret_lightning.data.readers.source_location import ByteLocation, SourceLocation, find_line_numbers, resolve_lines
from tests.support.row_files import write


def test_location_text_is_file_and_line(tmp_path: Path) -> None:
    text = write(tmp_path / "a.jsonl")
    offset = text.read_bytes().index(b"wit_5") - len('{"data_id": "')
    assert str(ByteLocation(text, offset)) == str(SourceLocation(text, 6)) == f"{text}:6"
    assert str(SourceLocation(Path("a.parquet"), 6)) == "a.parquet, row 6"


def test_line_numbers_of_byte_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b"x" * (i * 7 % 23) + b"\n" for i in range(60)]
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"".join(lines))
    starts = [sum(map(len, lines[:i])) for i in range(60)]
    expected = {start: number for number, start in enumerate(starts, 1)}
    wanted = starts[::-3]  # unordered, and not all of them
    for block in (1 << 24, 5):
        monkeypatch.setattr(source_location, "_BLOCK", block)
        assert find_line_numbers(file, wanted) == {start: expected[start] for start in wanted}
    assert find_line_numbers(file, []) == {}


def test_resolve_lines_keeps_order_of_locations(tmp_path: Path) -> None:
    one, other = (tmp_path / name for name in ("a.jsonl", "b.jsonl"))
    one.write_text("{}\n{}\n{}\n")
    other.write_text("{}\n\n\n{}\n")
    locations = [ByteLocation(one, 6), SourceLocation(one, 9), ByteLocation(other, 5), ByteLocation(one, 0)]
    assert resolve_lines(locations) == [
        SourceLocation(one, 3),
        SourceLocation(one, 9),
        SourceLocation(other, 4),
        SourceLocation(one, 1),
    ]
    assert [location.line for location in locations] == [3, 9, 4, 1]
    assert resolve_lines([]) == []
