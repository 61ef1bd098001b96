"""Tests of the loading of evaluation subsets."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.data.layouts.m2kr import M2KRLayout
from ret_lightning.data.readers.source_location import SourceLocation
from ret_lightning.data.rows import Passage, Query
from ret_lightning.data.subset_loading import load_subset, sample_pool
from ret_lightning.data.types import EvaluationSubset
from ret_lightning.errors import DataError
from tests.support.m2kr_folder import PASSAGES, read, write_lines


def test_repeated_passage_is_an_error_or_skipped(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = root / "jsonl/m2kr/passages/wit_passages_test.jsonl"
    rows = read(file)
    write_lines(file, [*rows, rows[3] | {"passage_text": "another text"}])
    with pytest.raises(DataError) as error:
        load_subset(M2KRLayout(root), "wit", "test")
    assert (error.value.code, error.value.passage_id, error.value.first_line) == ("duplicate-passage-id", "wit_3", 4)
    pool = load_subset(M2KRLayout(root), "wit", "test", on_bad_row="skip", max_bad_fraction=0.1).pool
    assert [passage.passage_id for passage in pool] == [f"wit_{i}" for i in range(PASSAGES)]
    assert pool[3].text == rows[3]["passage_text"]
    assert f"{file}:{PASSAGES + 1}" in caplog.text


def test_limit_and_instruction_keep_the_pool(root: Path) -> None:
    subset = load_subset(M2KRLayout(root), "okvqa", "test", instruction="Find:", limit=3)
    assert [q.data_id for q in subset.queries] == [f"okvqa_test_{i}" for i in range(3)]
    assert {q.instruction for q in subset.queries} == {"Find:"}
    assert len(subset.pool) == PASSAGES


def test_sampled_pool_depends_on_seed() -> None:
    location = SourceLocation(Path("a.jsonl"), 1)
    pool = [Passage(f"p{i}", "text", None, None, location) for i in range(200)]
    queries = [Query(f"q{i}", None, "q?", None, None, (f"p{i}",), (), None, location) for i in (5, 150)]
    subset = EvaluationSubset("wit", "val", queries, pool)
    samples = [[p.passage_id for p in sample_pool(subset, 40, seed).pool] for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    for sample in samples:
        assert len(sample) == 40
        assert {"p5", "p150"} <= set(sample)
        assert sample == sorted(sample, key=lambda name: int(name[1:]))


@pytest.mark.parametrize("kind", ["queries", "passages"])
def test_subset_without_usable_rows_is_refused(root: Path, kind: str) -> None:
    name = {"queries": "test/wit_test.jsonl", "passages": "passages/wit_passages_test.jsonl"}[kind]
    file = root / "jsonl/m2kr" / name
    write_lines(file, [{"unknown": 1}])
    with pytest.raises(DataError) as error:
        load_subset(M2KRLayout(root), "wit", "test", on_bad_row="skip", max_bad_fraction=1.0)
    assert (error.value.code, error.value.path, error.value.subset) == ("no-evaluation-rows", str(file), "wit")
