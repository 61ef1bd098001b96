"""Per-query metrics from TREC files, against the ranks in the files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ret_lightning.errors import DataError
from ret_lightning.report.per_query_results import resolve_mean_metric, score_queries
from ret_lightning.report.run_folders import Run, find_runs
from tests.support.report_runs import make_run


def test_mean_metric_resolves_to_subsets() -> None:
    metrics = dict.fromkeys(
        ["wit/recall@5", "wit/recall@10", "okvqa/recall@5", "okvqa/pseudo_recall@5", "mean/recall@5"], 0.5
    )
    assert resolve_mean_metric("wit/recall@10", metrics) == {"wit": "recall@10"}
    assert resolve_mean_metric("mean/recall@5", metrics) == {"wit": "recall@5", "okvqa": "recall@5"}
    assert resolve_mean_metric("mean/pseudo_recall@5", metrics) == {"okvqa": "pseudo_recall@5"}
    assert resolve_mean_metric("mean/main_recall", metrics) == {"wit": "recall@10", "okvqa": "recall@5"}
    assert resolve_mean_metric("mean/main_pseudo_recall", metrics) == {"okvqa": "pseudo_recall@5"}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Run, dict[str, list[int]]]:
    ranks = make_run(tmp_path / "run", skill=0.4)
    (run,), _ = find_runs(tmp_path)
    return run, ranks


@pytest.mark.parametrize(
    ("metric", "formula"),
    [("recall@1", lambda rank: float(rank == 1)), ("recall@5", lambda rank: float(rank <= 5)),
     ("mrr@10", lambda rank: 1 / rank if rank <= 10 else 0.0)],
)  # fmt: skip
def test_per_query_scores_follow_ranks(made: tuple, metric: str, formula: Callable[[int], float]) -> None:
    run, ranks = made
    scores = score_queries(run, "okvqa", metric, None)
    assert scores.queries == [f"okvqa_test_{i}" for i in range(len(ranks["okvqa"]))]
    assert scores.values.tolist() == pytest.approx([formula(rank) for rank in ranks["okvqa"]])
    for rank, best, positives in zip(ranks["okvqa"], scores.best, scores.positives, strict=True):
        assert (best in positives) == (rank == 1)


def test_rankings_must_match_reported_metric(made: tuple) -> None:
    run, _ = made
    other = replace(run, metrics={**run.metrics, "okvqa/recall@5": run.metrics["okvqa/recall@5"] - 1e-3})
    with pytest.raises(DataError) as caught:
        score_queries(other, "okvqa", "recall@5", None)
    assert (caught.value.code, caught.value.found) == (
        "rankings-disagree",
        pytest.approx(run.metrics["okvqa/recall@5"]),
    )


def test_pseudo_recall_requires_texts(made: tuple) -> None:
    with pytest.raises(DataError) as caught:
        score_queries(made[0], "okvqa", "pseudo_recall@5", None)
    assert (caught.value.code, caught.value.metric) == ("metric-needs-texts", "pseudo_recall@5")
