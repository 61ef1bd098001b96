"""The passages of an index: read from files, and stored for display."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.errors import DataError
from ret_lightning.search import passages as passages_module
from ret_lightning.search.passages import (
    PassageRecord,
    PassageRecords,
    check_ids_are_new,
    read_passages,
    write_passage_records,
)
from tests.support.m2kr_folder import passage, write_lines
from tests.support.search_corpus import NAME, cut, needs_qdrant, read
from tests.support.small_runs import Trained

needs_run = pytest.mark.slow  # uses the session run of ret-train


@needs_run
@pytest.mark.parametrize(
    "target",
    [["index=new", "processes=2"], pytest.param(["qdrant=store", "collection=new"], marks=needs_qdrant)],
)
def test_empty_passages_are_reported_and_kept(target, trained: Trained, make, tmp_path: Path, call, capsys) -> None:
    rows = [passage(NAME, i) for i in range(5)]
    for row in rows[1:3]:
        row["passage_text"] = row["passage_image_path"] = None
    rows[4]["passage_text"] = None  # has an image
    write_lines(tmp_path / "p.jsonl", rows)
    assert make(tmp_path / "p.jsonl", f"checkpoint={trained.exported}", *target) == 0
    captured = capsys.readouterr()
    warning = "2 of 5 passages have neither text nor image, the first is 'evqa_1' at"
    assert (captured.out + captured.err).count(warning) == 1
    assert f"{tmp_path / 'p.jsonl'}:2; they are indexed" in captured.out
    assert call("search", target[0], *(part for part in target if "collection" in part), "query=x") == 0
    assert len(read(capsys.readouterr().out)) == 5


def test_pattern_reads_all_files(tmp_path: Path) -> None:
    for part in range(2):
        write_lines(tmp_path / f"p{part}.jsonl", [passage(NAME, 2 * part + i) for i in range(2)])
    read_back = read_passages(str(tmp_path / "p*.jsonl"))
    assert [p.passage_id for p in read_back] == [f"{NAME}_{i}" for i in range(4)]
    locations = [(p.location.file.name, p.location.line) for p in read_back]
    assert locations == [("p0.jsonl", 1), ("p0.jsonl", 2), ("p1.jsonl", 1), ("p1.jsonl", 2)]


def test_invalid_passage_files_are_rejected(tmp_path: Path) -> None:
    write_lines(tmp_path / "twice.jsonl", [passage(NAME, i) for i in (1, 2, 1)])
    write_lines(tmp_path / "empty.jsonl", [""])
    with pytest.raises(DataError) as caught:
        read_passages(str(tmp_path / "twice.jsonl"))
    assert (caught.value.code, caught.value.line, caught.value.found) == ("passage-id-twice", 3, f"{NAME}_1")
    with pytest.raises(DataError) as caught:
        read_passages(str(tmp_path / "empty.jsonl"))
    assert (caught.value.code, caught.value.paths) == ("files-without-rows", (tmp_path / "empty.jsonl",))


def test_passages_that_are_passed_are_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [passage(NAME, i) for i in range(3)]
    rows[1]["passage_text"] = rows[1]["passage_image_path"] = None
    write_lines(tmp_path / "p.jsonl", rows)
    passages = read_passages(str(tmp_path / "p.jsonl"))
    caplog.clear()
    assert read_passages(passages) == passages
    assert f"passages: 1 of 3 passages have neither text nor image, the first is '{NAME}_1'" in caplog.text
    with pytest.raises(DataError) as caught:
        read_passages([])
    assert caught.value.code == "files-without-rows"
    with pytest.raises(DataError) as caught:
        read_passages([*passages, passages[0]])
    assert (caught.value.code, caught.value.found) == ("passage-id-twice", f"{NAME}_0")


def test_existing_ids_are_counted(tmp_path: Path) -> None:
    write_lines(tmp_path / "p.jsonl", [passage(NAME, i) for i in range(4)])
    passages = read_passages(str(tmp_path / "p.jsonl"))
    check_ids_are_new(passages, ("other", f"{NAME}_9"), "p.jsonl")
    with pytest.raises(DataError) as caught:
        check_ids_are_new(passages, ("other", f"{NAME}_3", f"{NAME}_1"), "p.jsonl")
    assert (caught.value.code, caught.value.count, caught.value.found) == ("passages-indexed-already", 2, f"{NAME}_1")


@pytest.mark.parametrize("batch", [1, 3, 4096])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_passage_records_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, count: int) -> None:
    monkeypatch.setattr(passages_module, "ROWS_PER_BATCH", batch)
    records = [
        PassageRecord(f"p{i}", None if i % 3 == 1 else f"é {i}", None if i % 2 else f"{i}.png") for i in range(count)
    ]
    write_passage_records(tmp_path / "passages.arrow", records)
    stored = PassageRecords(tmp_path / "passages.arrow")
    assert len(stored) == count
    assert list(stored) == [stored[row] for row in range(count)] == records
    assert stored[-1] == records[-1]
    with pytest.raises(IndexError):
        stored[count]


def test_truncated_records_are_rejected(tmp_path: Path) -> None:
    write_passage_records(tmp_path / "passages.arrow", [PassageRecord("p", "text", None)])
    cut(tmp_path / "passages.arrow")
    with pytest.raises(DataError) as caught:
        PassageRecords(tmp_path / "passages.arrow")
    assert caught.value.code == "passage-records-unreadable"
