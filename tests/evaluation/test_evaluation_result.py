"""Means over subsets, intervals and files of an evaluation result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ret_lightning.data import EvaluationSubset, Passage, Query
from ret_lightning.evaluation import EvaluationResult, SubsetResult
from ret_lightning.retrieval import Ranking, read_qrels, read_run


def make_result(
    name: str, recalls: list[float], ann_recall: dict[str, float] | None = None, **more: list[float]
) -> SubsetResult:
    queries = [Query(f"q{i}", question="?", passage_ids=(f"p{i}",)) for i in range(len(recalls))]
    by_query = {m: torch.tensor(v, dtype=torch.float64) for m, v in {"recall@5": recalls, **more}.items()}
    ranking = Ranking(torch.tensor([[1, 0]] * len(recalls)), torch.tensor([[2.0, 1.0]] * len(recalls)))
    return SubsetResult(
        EvaluationSubset(name, "test", queries, [Passage("p0"), Passage("p1"), Passage("p2")]),
        list(range(len(recalls))), [0, 2], ranking, by_query,
        {m: float(v.nanmean()) for m, v in by_query.items()}, {5: 1.0}, ann_recall or {},
    )  # fmt: skip


@pytest.fixture
def result() -> EvaluationResult:
    return EvaluationResult(
        {
            "wit": make_result("wit", [1, 1, 0, 0], {"ann_recall@10": 0.5}, **{"recall@10": [1, 1, 1, 0]}),
            "mine": make_result("mine", [1, 0], {"ann_recall@10": 1.0}, **{"pseudo_recall@5": [float("nan"), 1]}),
        },
        {"encode": 1.0},
    )


def test_means_cover_subsets_with_the_metric(result: EvaluationResult) -> None:
    assert result.metrics == {
        "wit/recall@5": 0.5, "wit/recall@10": 0.75, "mine/recall@5": 0.5, "mine/pseudo_recall@5": 1.0,
        "mean/recall@5": 0.5, "mean/recall@10": 0.75, "mean/pseudo_recall@5": 1.0,
        "mean/main_recall": (0.75 + 0.5) / 2,  # recall@10 of wit, as published, and recall@5 of an unknown subset
        "mean/main_pseudo_recall": 1.0,
    }  # fmt: skip
    assert result.ann_recall == {"ann_recall@10": 0.75, "wit/ann_recall@10": 0.5, "mine/ann_recall@10": 1.0}


def test_every_metric_has_an_interval(result: EvaluationResult) -> None:
    bounds = result.intervals()
    assert bounds.keys() == result.metrics.keys()
    assert all(low <= result.metrics[name] <= high for name, (low, high) in bounds.items())


def test_rankings_refer_to_indexed_passages(result: EvaluationResult, tmp_path: Path) -> None:
    result.write_rankings(tmp_path)
    ranked = read_run(tmp_path / "mine.trec")
    assert list(ranked) == ["q0", "q1"]
    assert all([passage for passage, _ in run] == ["p2", "p0"] for run in ranked.values())
    assert read_qrels(tmp_path / "wit.qrels")["q3"] == ("p3",)
    assert result.subsets["wit"].pool_rows(0) == [2, 0]
