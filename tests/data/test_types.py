"""Queries without a positive in the pool, and distinct query ids."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from ret_lightning.data.readers.source_location import BytePlace, Place
from ret_lightning.data.rows import Query
from ret_lightning.data.types import EvaluationSubset, distinct_ids, unreachable_queries, warn_unreachable


def query(data_id: str, line: int, *passage_ids: str, file: str = "wit_test.jsonl") -> Query:
    return Query(data_id, None, "q?", None, None, passage_ids, (), None, Place(Path(file), line))


def test_query_is_reachable_by_any_of_its_positives() -> None:
    assert unreachable_queries([["a"], ["x", "b"], ["x"], []], {"a", "b"}) == [2, 3]


@pytest.mark.parametrize(("unreachable", "all_missing"), [([1], False), ([0, 1], True)])
def test_warning_names_the_first_query(
    unreachable: list[int], all_missing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    queries = [query("7", 1, "x"), query("8", 2, "y")]
    pool = [] if all_missing else [SimpleNamespace(passage_id="x")]
    with caplog.at_level(logging.WARNING):
        warn_unreachable(EvaluationSubset("wit", "test", queries, pool))
    (text,) = caplog.messages
    first = queries[unreachable[0]]
    assert f"{len(unreachable)} of 2 queries" in text
    assert f"data_id {first.data_id} at {first.place}" in text
    assert ("do the ids of queries and passages match?" in text) == all_missing


def test_no_warning_where_every_query_has_a_positive(caplog: pytest.LogCaptureFixture) -> None:
    warn_unreachable(EvaluationSubset("wit", "test", [query("7", 1, "x")], [SimpleNamespace(passage_id="x")]))
    assert caplog.messages == []


def test_repeated_ids_carry_their_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n\n{}\n")
    at_byte = Query("a", None, "q?", None, None, (), (), None, BytePlace(file, 4))
    assert distinct_ids([query("a", 1), query("b", 2), at_byte]) == ["a", "b", "a#line3"]


def test_equal_ids_and_lines_of_two_files_differ() -> None:
    queries = [query("a", 5), query("a", 5, file="other.jsonl"), query("a#line5", 6), query("a", 5, file="third.jsonl")]
    ids = distinct_ids(queries)
    assert ids[0] == "a"
    assert len(set(ids)) == 4
