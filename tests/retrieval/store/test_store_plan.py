"""The plan of an embedding store: its parts, its file, and the detection of other stores."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ret_lightning.errors import DataError
from ret_lightning.retrieval.store import store_plan
from ret_lightning.retrieval.store.store_plan import (
    PARTS,
    PLAN,
    StoreMismatch,
    StorePlan,
    check_same_plan,
    provisional_rows,
    read_plan,
    sha256_of_part,
    write_marker,
)

SMALL = StorePlan(
    "v2:abc", {"dtype": "float16", "rows": "x"}, count=25, vectors=4, width=8, part_rows=10, ids_sha256="1"
)


@pytest.mark.parametrize(("count", "part_rows"), [(25, 10), (30, 10), (1, 10), (0, 10), (7, 1)])
def test_parts_cover_each_row_once(count: int, part_rows: int) -> None:
    plan = replace(SMALL, count=count, part_rows=part_rows)
    rows = [plan.rows(part) for part in range(plan.parts)]
    assert [row for part in rows for row in part] == list(range(count))
    assert all(len(part) == part_rows for part in rows[:-1])
    assert all(rows)


@pytest.mark.parametrize(("dtype", "size", "file"), [("float16", 2, "vectors.f16"), ("float32", 4, "vectors.f32")])
def test_row_size_and_file_name(dtype: str, size: int, file: str) -> None:
    plan = replace(SMALL, dtype=dtype)
    assert (plan.row_bytes, plan.vectors_file) == (4 * 8 * size, file)
    assert plan.numbers.str[0] == "<"  # little-endian on every machine


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"count": 26, "ids_sha256": "2", "config": {"rows": "y"}}, "count 25, not 26"),
        ({"ids_sha256": "2", "config": {"dtype": "float16", "rows": "y"}}, "other ids"),
        ({"fingerprint": "v2:def"}, "checkpoint fingerprint 'v2:abc', not 'v2:def'"),
        ({"config": {"dtype": "float16", "rows": "y"}}, "rows 'x', not 'y'"),
        ({"config": {"dtype": "float16"}}, "rows 'x', not None"),
        ({"part_rows": 5}, "part_rows 10, not 5"),
    ],
)
def test_first_difference_is_reported(changes: dict, difference: str, tmp_path: Path) -> None:
    check_same_plan(tmp_path, SMALL, SMALL)
    with pytest.raises(StoreMismatch) as caught:
        check_same_plan(tmp_path, SMALL, replace(SMALL, **changes))
    assert (caught.value.code, caught.value.difference) == ("store-of-another-plan", difference)


def test_plan_round_trip(tmp_path: Path) -> None:
    more = {store_plan.SUMS: ["a"], store_plan.PROVISIONAL: [3]}  # as in a manifest
    (tmp_path / PLAN).write_text(json.dumps(asdict(SMALL) | more))
    assert read_plan(tmp_path, PLAN) == SMALL


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"format": 2}, "file-format-unknown"),
        ({"count": -1}, "store-plan-invalid"),
        ({"width": 0}, "store-plan-invalid"),
        ({"vectors": 2.5}, "store-plan-invalid"),
        ({"part_rows": True}, "store-plan-invalid"),
        ({"dtype": "int8"}, "store-plan-invalid"),
        ({"unknown": 1}, "store-plan-invalid"),
        ("[1]", "store-json-no-object"),
        ("{", "store-json-unreadable"),
        (None, "store-json-unreadable"),
    ],
)
def test_invalid_plan_is_rejected(change: dict | str | None, code: str, tmp_path: Path) -> None:
    if change is not None:
        (tmp_path / PLAN).write_text(change if isinstance(change, str) else json.dumps(asdict(SMALL) | change))
    with pytest.raises(DataError) as caught:
        read_plan(tmp_path, PLAN)
    assert (caught.value.code, caught.value.path) == (code, tmp_path / PLAN)


def test_markers_keep_provisional_rows(tmp_path: Path) -> None:
    (tmp_path / PARTS).mkdir()
    write_marker(tmp_path, 0, "sum")
    write_marker(tmp_path, 12, "sum", [120, 125])
    assert (provisional_rows(tmp_path, 0), provisional_rows(tmp_path, 12)) == ([], [120, 125])


@pytest.mark.parametrize("read_bytes", [1, 100, 1 << 24])
def test_checksum_covers_bytes_of_part(read_bytes: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(store_plan, "READ_BYTES", read_bytes)
    content = bytes(i % 251 for i in range(25 * SMALL.row_bytes))
    (tmp_path / SMALL.vectors_file).write_bytes(content)
    for part, (first, last) in enumerate([(0, 10), (10, 20), (20, 25)]):
        expected = hashlib.sha256(content[first * SMALL.row_bytes : last * SMALL.row_bytes]).hexdigest()
        assert sha256_of_part(tmp_path, SMALL, part) == expected
