"""Caches of the data that cannot be written: one line that names them, or a warning where the run can do without."""

from __future__ import annotations

import logging
from pathlib import Path

import datasets
import pytest

from ret_lightning.data.glyphs.corpus import prepare_glyphs
from ret_lightning.data.images.archive_index import index_files
from ret_lightning.data.readers.arrow_copy import arrow_copy
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.sampling.subset_index import row_subsets
from ret_lightning.errors import DataError
from tests.support.m2kr_folder import write_folder


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A folder that cannot be made, not by root either: its parent is a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "cache"


@pytest.fixture
def rows(tmp_path: Path) -> RowFiles:
    root = write_folder(tmp_path / "m2kr")
    return RowFiles.named(root, "jsonl/m2kr/train/m2kr_up_train.jsonl", "train")


def test_row_copy_names_variable_and_streaming(rows: RowFiles, blocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", blocked)
    with pytest.raises(DataError) as caught:
        arrow_copy(rows)
    error = caught.value
    assert (error.code, error.variable, error.path) == ("row-cache-not-written", "HF_DATASETS_CACHE", str(blocked))
    assert "data.reading=streaming" in error.message
    assert "\n" not in error.message


def test_row_copy_that_fails_while_writing(rows: RowFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.arrow_writer.ArrowWriter, "write_table", full)
    with pytest.raises(DataError) as caught:
        arrow_copy(rows)
    assert (caught.value.code, caught.value.reason) == ("row-cache-not-written", "No space left on device")


def test_subset_scan_warns(
    rows: RowFiles, blocked: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with caplog.at_level(logging.WARNING):
        assert len(row_subsets(rows, ["okvqa"]).codes) == 40
    assert "XDG_CACHE_HOME" in caplog.text


def test_archive_index_names_variable(tmp_path: Path, blocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    (tmp_path / "a.tar").write_bytes(bytes(10240))
    with pytest.raises(DataError) as caught:
        index_files([tmp_path / "a.tar"])
    assert caught.value.code == "archive-cache-not-written"
    assert "XDG_CACHE_HOME" in caught.value.message


def test_glyphs_name_option_and_variable(blocked: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare_glyphs(cache_dir=blocked)
    assert caught.value.code == "glyph-cache-not-written"
    assert "data.cache_dir" in caught.value.message
    assert "XDG_CACHE_HOME" in caught.value.message
