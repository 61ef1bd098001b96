"""Tests of the scan for the subset and the passage ids of each training row, and of its cache."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers import row_files
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.rows import M2KR_ROWS
from ret_lightning.data.sampling import subset_index
from ret_lightning.data.sampling.holdout import HoldoutLimits, hold_out
from ret_lightning.data.sampling.subset_index import hash_passage_id, scan_passage_ids, scan_subsets
from ret_lightning.errors import DataError
from tests.support.row_files import jsonl_files, training_row

NAMES = ("wit", "okvqa")


def test_unwritable_cache_warning_names_xdg_variable(
    tmp_path: Path, blocked: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with caplog.at_level(logging.WARNING):
        files = jsonl_files(tmp_path / "train.jsonl", [training_row(i, "okvqa", ["a"]) for i in range(40)])
        assert len(scan_subsets(files, ["okvqa"]).codes) == 40
    assert "XDG_CACHE_HOME" in caplog.text


ROWS = [
    {"data_id": "OKVQA_1"},
    {"data_id": "wit-2"},
    {"data_id": "x", "subset": "WIT"},
    {"data_id": 3},
    "{",
    {"data_id": "okvqa_b"},
]


def test_subsets_are_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = jsonl_files(tmp_path / "a.jsonl", ROWS)
    found = scan_subsets(files, ["wit", "okvqa"])
    assert [found.names[code] for code in found.codes] == ["okvqa", "wit", "wit", "unknown", "unknown", "okvqa"]
    assert found.counts == {"okvqa": 2, "wit": 2, "unknown": 2}
    with monkeypatch.context() as patch:
        patch.setattr(subset_index, "_scan", lambda *_: pytest.fail("scanned again"))
        again = scan_subsets(files, ["wit", "okvqa"])
    assert again.names == found.names
    assert again.codes.tolist() == found.codes.tolist()
    assert scan_subsets(files, ["wit"]).counts == {"unknown": 4, "wit": 2}
    jsonl_files(tmp_path / "a.jsonl", ROWS[:2])
    assert scan_subsets(files, ["wit", "okvqa"]).counts == {"okvqa": 1, "wit": 1}


def test_unwritable_cache_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(subset_index, "default_cache_dir", lambda: tmp_path / "file")
    assert scan_subsets(jsonl_files(tmp_path / "a.jsonl", ROWS), ["wit"]).counts["wit"] == 2
    assert "cannot write the scan cache" in caplog.text


def test_parallel_scan_equals_serial_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [training_row(i, NAMES[i * i % 2], [f"p{i * 7 % 900}", f"p{i}"][: 1 + i % 2]) for i in range(5000)]
    files = jsonl_files(tmp_path / "train.jsonl", rows)
    serial = subset_index._scan(files, SubsetNames(NAMES), M2KR_ROWS)
    monkeypatch.setattr(subset_index, "QUIET_BYTES", 0)
    parallel = subset_index._scan(files, SubsetNames(NAMES), M2KR_ROWS)
    assert serial.keys() == parallel.keys()
    for name, array in serial.items():
        assert np.array_equal(array, parallel[name])
        assert array.dtype == parallel[name].dtype


def test_killed_scan_process_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(row_files, "MIN_SPAN_BYTES", 100)
    files = jsonl_files(tmp_path / "train.jsonl", [training_row(i, "wit", ["a"]) for i in range(50)])
    monkeypatch.setattr(subset_index, "QUIET_BYTES", 0)
    monkeypatch.setattr(subset_index, "_parse_subset_and_ids", lambda parser, row: os._exit(9))
    with pytest.raises(DataError) as error:
        subset_index._scan(files, SubsetNames(NAMES), M2KR_ROWS)
    assert (error.value.code, error.value.path) == ("scan-process-killed", str(files))


def test_holdout_uses_cached_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = jsonl_files(tmp_path / "train.jsonl", [training_row(i, "wit", [f"p{i}"]) for i in range(50)])
    first = hold_out(files, NAMES, NAMES, HoldoutLimits())
    with monkeypatch.context() as patch:
        patch.setattr(subset_index, "_scan", lambda *_: pytest.fail("scanned again"))
        again = hold_out(files, NAMES, NAMES, HoldoutLimits())
        assert subset_index.scan_subsets(files, NAMES).counts == {"wit": 50}
    assert again.locations == first.locations


def test_ids_and_locations_of_rows(tmp_path: Path) -> None:
    rows = [training_row(i, NAMES[i % 2], [f"p{i}", "both"][: 1 + i % 2]) for i in range(6)]
    files = RowFiles([jsonl_files(tmp_path / f"{n}.jsonl", part).paths[0] for n, part in enumerate((["{"], rows))])
    found = scan_passage_ids(files, NAMES)
    assert found.counts.tolist() == [0, 1, 2, 1, 2, 1, 2]  # a bad row has no ids
    texts = [f"{NAMES[i % 2]}\0{name}".encode() for i, row in enumerate(rows) for name in row["passage_id"]]
    hashes = [int(hashlib.blake2b(text, digest_size=8).hexdigest(), 16) for text in texts]
    assert found.hashes.tolist() == hashes
    starts = np.cumsum([1, *(len(json.dumps(row)) + 1 for row in rows)])  # after the blank line
    assert found.locations(np.array([0, 1, 6, 3])) == [(0, 1), (1, 1), (1, starts[5]), (1, starts[2])]
    assert found.file_ends.tolist() == [1, 7]


def test_id_hash_depends_on_subset() -> None:
    assert hash_passage_id("wit", "1") != hash_passage_id("okvqa", "1")
    assert hash_passage_id("wit", "a") == hash_passage_id("wit", "a") != hash_passage_id("wita", "")
    assert hash_passage_id("wit", "\udcff") < 2**64  # not UTF-8
