"""Queries without a positive in the candidate pool, and distinct query ids."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from ret_lightning.data.readers.source_location import ByteLocation, SourceLocation
from ret_lightning.data.rows import Query
from ret_lightning.data.types import EvaluationSubset, distinct_ids, find_unreachable, warn_unreachable


def query(data_id: str, line: int, *passage_ids: str, file: str = "wit_test.jsonl") -> Query:
    return Query(data_id, None, "q?", None, None, passage_ids, (), None, SourceLocation(Path(file), line))


def test_query_is_reachable_by_any_positive() -> None:
    assert find_unreachable([["a"], ["x", "b"], ["x"], []], {"a", "b"}) == [2, 3]


@pytest.mark.parametrize(("unreachable", "all_missing"), [([1], False), ([0, 1], True)])
def test_warning_names_first_unreachable_query(
    unreachable: list[int], all_missing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    queries = [query("7", 1, "x"), query("8", 2, "y")]
    pool = [] if all_missing else [SimpleNamespace(passage_id="x")]
    with caplog.at_level(logging.WARNING):
        warn_unreachable(EvaluationSubset("wit", "test", queries, pool))
    (text,) = caplog.messages
    first = queries[unreachable[0]]
    assert f"{len(unreachable)} of 2 queries" in text
    assert f"data_id {first.data_id} at {first.location}" in text
    assert ("check that queries and passages use the same ids" in text) == all_missing


def test_no_warning_if_all_queries_are_reachable(caplog: pytest.LogCaptureFixture) -> None:
    warn_unreachable(EvaluationSubset("wit", "test", [query("7", 1, "x")], [SimpleNamespace(passage_id="x")]))
    assert caplog.messages == []


def test_repeated_id_gets_line_suffix(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n\n{}\n")
    at_byte = Query("a", None, "q?", None, None, (), (), None, ByteLocation(file, 4))
    assert distinct_ids([query("a", 1), query("b", 2), at_byte]) == ["a", "b", "a#line3"]


def test_equal_ids_and_lines_in_two_files_are_distinct() -> None:
    queries = [query("a", 5), query("a", 5, file="other.jsonl"), query("a#line5", 6), query("a", 5, file="third.jsonl")]
    ids = distinct_ids(queries)
    assert ids[0] == "a"
    assert len(set(ids)) == 4
