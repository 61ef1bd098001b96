"""Metrics of single queries from a run's TREC files, against the ranks that the files were made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ret_lightning.errors import DataError
from ret_lightning.report.per_query_results import judge_run, mean_parts
from ret_lightning.report.run_folders import Run, find_runs
from tests.support.report_runs import make_run


def test_a_mean_is_over_the_subsets_that_have_the_metric() -> None:
    metrics = dict.fromkeys(
        ["wit/recall@5", "wit/recall@10", "okvqa/recall@5", "okvqa/pseudo_recall@5", "mean/recall@5"], 0.5
    )
    assert mean_parts("wit/recall@10", metrics) == {"wit": "recall@10"}
    assert mean_parts("mean/recall@5", metrics) == {"wit": "recall@5", "okvqa": "recall@5"}
    assert mean_parts("mean/pseudo_recall@5", metrics) == {"okvqa": "pseudo_recall@5"}
    assert mean_parts("mean/main_recall", metrics) == {"wit": "recall@10", "okvqa": "recall@5"}
    assert mean_parts("mean/main_pseudo_recall", metrics) == {"okvqa": "pseudo_recall@5"}


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
def test_values_of_queries_follow_from_their_ranks(made: tuple, metric: str, formula: Callable[[int], float]) -> None:
    run, ranks = made
    judged = judge_run(run, "okvqa", metric, None)
    assert judged.queries == [f"okvqa_test_{i}" for i in range(len(ranks["okvqa"]))]
    assert judged.values.tolist() == pytest.approx([formula(rank) for rank in ranks["okvqa"]])
    for rank, best, positives in zip(ranks["okvqa"], judged.best, judged.positives, strict=True):
        assert (best in positives) == (rank == 1)


def test_rankings_that_give_another_metric_are_refused(made: tuple) -> None:
    run, _ = made
    other = replace(run, metrics={**run.metrics, "okvqa/recall@5": run.metrics["okvqa/recall@5"] - 1e-3})
    with pytest.raises(DataError) as caught:
        judge_run(other, "okvqa", "recall@5", None)
    assert (caught.value.code, caught.value.found) == (
        "rankings-disagree",
        pytest.approx(run.metrics["okvqa/recall@5"]),
    )


def test_pseudo_recall_needs_the_texts(made: tuple) -> None:
    with pytest.raises(DataError) as caught:
        judge_run(made[0], "okvqa", "pseudo_recall@5", None)
    assert (caught.value.code, caught.value.metric) == ("metric-needs-texts", "pseudo_recall@5")
