"""Paths and JSON files of a run folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ret_lightning.runtime.run_layout import METRICS_FILE, previous_path, read_json, write_json


def test_json_round_trip_is_exact(tmp_path: Path) -> None:
    content = {"b": 0.1 + 0.2, "a": {"ü": None, "list": [1, "x"]}}
    write_json(tmp_path / METRICS_FILE, content)
    assert read_json(tmp_path / METRICS_FILE) == content
    text = (tmp_path / METRICS_FILE).read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")


def test_failed_json_write_keeps_earlier_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_missing_json_reads_as_empty_object(tmp_path: Path) -> None:
    assert read_json(tmp_path / "nowhere.json") == {}


def test_previous_result_is_next_to_new_one() -> None:
    assert previous_path(Path("runs/a/metrics.json")) == Path("runs/a/metrics.previous.json")
