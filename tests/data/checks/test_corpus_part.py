"""Parts of a corpus: planned scans and merged results."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.data.batch import hash_text
from ret_lightning.data.checks.corpus_part import CorpusPart, find_repeated, plan_scans
from ret_lightning.data.readers import row_files
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.readers.source_location import SourceLocation
from tests.support.m2kr_folder import passage, query, write_lines


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RowFiles:
    """Two files of queries, in many spans, with a bad row and a blank line in the first file."""
    monkeypatch.setattr(row_files, "MIN_SPAN_BYTES", 400)
    rows = [query("evqa", i) for i in range(12)]
    write_lines(tmp_path / "a.jsonl", [*rows[:3], "{", "", *rows[3:7]])
    write_lines(tmp_path / "b.jsonl", rows[7:])
    return RowFiles([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])


def scanned(files: RowFiles, **options: int) -> CorpusPart:
    scans = list(plan_scans(files, "queries", "evqa", None, **options))
    part = CorpusPart("test/evqa queries", "queries", files, scans)
    part.results = [scan() for scan, _ in scans]
    return part


def test_results_are_merged_in_row_order(files: RowFiles) -> None:
    part = scanned(files)
    assert len(part.scans) > 4
    ids = [f"evqa_test_{i}" for i in range(12)]
    assert part.collect("data_id_texts") == ids
    assert part.concatenate("data_ids").tolist() == [hash_text(name) for name in ids]
    tally = part.merge_tallies("rows")
    assert (tally.rows, dict(tally.kinds)) == (13, {"bad_json": 1})
    assert tally.first["bad_json"][0].location.line == 4
    counts = part.merge_sides()["evqa", "query"]
    assert (counts.rows, counts.with_image) == (12, 9)
    assert len(CorpusPart("none", "queries", files, []).concatenate("data_ids")) == 0


def test_location_of_valid_row(files: RowFiles) -> None:
    a, b = files.paths
    part = scanned(files)
    expected = [SourceLocation(a, line) for line in (1, 2, 3, 6, 7, 8, 9)] + [
        SourceLocation(b, line) for line in range(1, 6)
    ]
    assert part.locations(list(range(12))) == expected
    assert [part.location(position).line for position in (0, 3, 11)] == [1, 6, 5]
    with pytest.raises(IndexError):
        part.location(12)


def test_scans_report_size_and_sample_some_spans(files: RowFiles) -> None:
    scans = list(plan_scans(files, "queries", "evqa", None, sampled_parts=2))
    assert sum(size for _, size in scans) == files.size()
    sampled = [scan.sampled for scan, _ in scans]
    assert sampled[0]
    assert 2 <= sum(sampled) <= 3 < len(sampled)


def test_row_group_sizes_add_up_to_file(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{name: value for name, value in passage("wit", i).items() if name != "extra"} for i in range(12)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=4)
    sizes = [size for _, size in plan_scans(RowFiles([tmp_path / "a.parquet"]), "pool", "wit", None)]
    assert sizes == [(tmp_path / "a.parquet").stat().st_size // 3] * 3


def test_find_repeated_returns_first_positions() -> None:
    assert find_repeated(["a", "b", "a", "c", "b", "a"]) == [(2, 0), (4, 1), (5, 0)]
    assert find_repeated([]) == []
