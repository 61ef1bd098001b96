"""Arrow copies of row files: content, file and line of each row, and errors of the cache."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from ret_lightning.data.readers import arrow_copy as arrow_copy_module
from ret_lightning.data.readers.arrow_copy import copy_to_arrow
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.errors import DataError
from tests.support.m2kr_folder import TRAIN
from tests.support.row_files import ROWS, write


@pytest.fixture
def rows(root: Path) -> RowFiles:
    return RowFiles.named(root, TRAIN, "train")


def test_unwritable_cache_error_names_variable(rows: RowFiles, blocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", blocked)
    with pytest.raises(DataError) as caught:
        copy_to_arrow(rows)
    error = caught.value
    assert (error.code, error.variable, error.path) == ("row-cache-not-written", "HF_DATASETS_CACHE", str(blocked))
    assert "data.reading=streaming" in error.message
    assert "\n" not in error.message


def test_failed_write_is_reported(rows: RowFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.arrow_writer.ArrowWriter, "write_table", full)
    with pytest.raises(DataError) as caught:
        copy_to_arrow(rows)
    assert (caught.value.code, caught.value.reason) == ("row-cache-not-written", "No space left on device")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_lines_are_copied_with_file_and_line(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_copy_module, "_TABLE_ROWS", 4)  # several tables in a file
    paths = [write(tmp_path / f"{number}{suffix}", ROWS[part]) for number, part in enumerate((slice(9), slice(9, 12)))]
    copy = copy_to_arrow(RowFiles(paths))
    assert copy.column_names == ["content", "file", "line"]
    assert [json.loads(content) for content in copy["content"]] == ROWS[:12]
    assert list(copy["file"]) == [0] * 9 + [1] * 3
    assert list(copy["line"]) == [*range(1, 10), 1, 2, 3]


def test_parquet_columns_of_files_are_merged(tmp_path: Path) -> None:
    tables = [{"a": ["x", "y"], "b": pyarrow.array([None, None], pyarrow.float64())}, {"b": ["z"], "c": [1]}]
    paths = [tmp_path / f"{number}.parquet" for number in range(2)]
    for path, table in zip(paths, tables, strict=True):
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    copy = copy_to_arrow(RowFiles(paths))
    assert list(copy["content"]) == [
        {"a": "x", "b": None, "c": None},
        {"a": "y", "b": None, "c": None},
        {"a": None, "b": "z", "c": 1},
    ]
    assert list(copy["line"]) == [1, 2, 1]


def test_blank_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS[:2])
    (tmp_path / "b.jsonl").write_text("\n \n")
    with pytest.raises(DataError) as caught:
        copy_to_arrow(RowFiles([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]))
    assert (caught.value.code, caught.value.path) == ("row-file-blank", tmp_path / "b.jsonl")
