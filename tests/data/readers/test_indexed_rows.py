"""Random access to rows through the Arrow copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.data.readers.indexed_rows import IndexedRows
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.readers.source_location import SourceLocation
from tests.support.m2kr_folder import TRAIN, write_folder
from tests.support.row_files import ROWS, parsed, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "m2kr")


def test_blank_lines_and_byte_order_mark_are_skipped(root: Path) -> None:
    lines = (root / TRAIN).read_text().splitlines()
    (root / TRAIN).write_text("\ufeff" + "\n\n".join(lines) + "\n\n", encoding="utf-8")
    rows = IndexedRows(RowFiles([root / TRAIN]))
    assert [content.decode() for content, _ in rows] == lines
    assert [location.line for _, location in rows] == list(range(1, 80, 2))
    assert [rows[i] for i in range(len(rows))] == list(rows)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_index_spans_several_files(tmp_path: Path, suffix: str) -> None:
    paths = [write(tmp_path / f"{name}{suffix}", ROWS[part]) for name, part in (("b", slice(3)), ("a", slice(3, 8)))]
    rows = IndexedRows(RowFiles(paths))
    assert len(rows) == 8
    for number in (7, 0, 3, 2):
        content, location = rows[number]
        assert parsed(content) == ROWS[number]
        assert location == (
            SourceLocation(paths[0], number + 1) if number < 3 else SourceLocation(paths[1], number - 2)
        )
    with pytest.raises(IndexError):
        rows[8]


def test_changed_file_is_copied_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[:3])
    assert len(IndexedRows(RowFiles([path]))) == 3
    write(path, ROWS[:5])
    assert len(IndexedRows(RowFiles([path]))) == 5
