"""Tables of the metrics at the end of a run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from lightning import Trainer
from rich.table import Table

from ret_lightning import RetrievalEvaluation
from ret_lightning.data.layouts.m2kr import M2KR_PUBLISHED
from ret_lightning.evaluation import EvaluationResult
from ret_lightning.evaluation.metric_tables import build_metrics_tables, build_published_table, print_tables
from ret_lightning.retrieval import ExactIndex
from tests.support.tiny_training import OPTIONS, make_data, make_module


@pytest.fixture
def evaluation(root: Path) -> RetrievalEvaluation:
    evaluation = RetrievalEvaluation(ExactIndex(), recall_at=[1, 5, 10], ranked=10)
    Trainer(**OPTIONS, logger=False, callbacks=[evaluation]).test(
        make_module(), datamodule=make_data(root), verbose=False
    )
    return evaluation


def build_tables(evaluation: RetrievalEvaluation) -> list[Table]:
    result = evaluation.results["test"]
    return build_metrics_tables(result, result.intervals(), "test")


def rows(table: Table) -> list[tuple[str, ...]]:
    return list(zip(*(column.cells for column in table.columns), strict=True))


def headers(table: Table) -> list[str]:
    return [str(column.header) for column in table.columns]


def test_first_table_has_main_metrics_and_intervals(evaluation: RetrievalEvaluation) -> None:
    main = build_tables(evaluation)[0]
    flat, bounds = evaluation.results["test"].metrics, evaluation.results["test"].intervals()
    assert headers(main) == ["subset", "queries", "passages", "metric", "value", "95 % interval"]
    keys = [
        ("wit", "R@10", "wit/recall@10"),
        ("infoseek", "R@5", "infoseek/recall@5"),
        ("infoseek", "PR@5", "infoseek/pseudo_recall@5"),
        ("evqa", "R@5", "evqa/recall@5"),
        ("okvqa", "R@5", "okvqa/recall@5"),
        ("okvqa", "PR@5", "okvqa/pseudo_recall@5"),
        ("mean", "recall", "mean/main_recall"),
        ("mean", "pseudo recall", "mean/main_pseudo_recall"),
    ]
    for (subset, metric, key), row in zip(keys, rows(main), strict=True):
        sizes = ("", "") if subset == "mean" else ("12", "12")
        low, high = bounds[key]
        assert row == (subset, *sizes, metric, f"{flat[key]:.3f}", f"{low:.3f} to {high:.3f}")


def test_subset_without_main_metric_has_sizes(root: Path) -> None:
    evaluation = RetrievalEvaluation(ExactIndex(), recall_at=[5], ranked=10)
    Trainer(**OPTIONS, logger=False, callbacks=[evaluation]).test(
        make_module(), datamodule=make_data(root, subsets=["wit"]), verbose=False
    )
    main, recall, fractional = build_tables(evaluation)
    assert rows(main) == [("wit", "12", "12", "", "", "")]
    assert [row[0] for row in rows(recall)] == [row[0] for row in rows(fractional)] == ["wit", "mean"]


def test_fractional_recall_is_listed_if_it_differs(evaluation: RetrievalEvaluation) -> None:
    found, flat = evaluation.results["test"], evaluation.results["test"].metrics
    same = {
        name: replace(own, metrics={m: own.metrics[m.replace("fractional_", "")] for m in own.metrics})
        for name, own in found.subsets.items()
    }
    results = found, EvaluationResult(same, {})
    listed, without = (build_metrics_tables(result, found.intervals(), "test") for result in results)
    assert len(listed) == len(without) + 1
    (table,) = (table for table in listed if table.title == "Fractional recall@K, test")
    assert headers(table) == ["subset", "FR@1", "FR@5", "FR@10"]
    assert rows(table)[-1] == ("mean", *(f"{flat[f'mean/fractional_recall@{k}']:.3f}" for k in (1, 5, 10)))


def test_main_metrics_are_starred(evaluation: RetrievalEvaluation) -> None:
    _, _, recall, _, pseudo = build_tables(evaluation)
    flat = evaluation.results["test"].metrics
    assert headers(recall) == ["subset", "R@1", "R@5", "R@10", "MRR@10", "nDCG@10", "random R@5"]
    columns = ["recall@1", "recall@5", "recall@10", "mrr@10", "ndcg@10"]
    for subset, *figures, chance in rows(recall):
        starred = {"wit": "recall@10", "mean": None}.get(subset, "recall@5")
        assert figures == [f"{'*' if name == starred else ''}{flat[f'{subset}/{name}']:.3f}" for name in columns]
        assert chance == "0.417"
    assert [row[0] for row in rows(recall)] == ["wit", "infoseek", "evqa", "okvqa", "mean"]
    assert headers(pseudo) == ["subset", "PR@1", "PR@5", "PR@10"]
    assert [row[0] for row in rows(pseudo)] == ["infoseek", "okvqa", "mean"]
    assert rows(pseudo)[1][2] == f"*{flat['okvqa/pseudo_recall@5']:.3f}"
    assert rows(pseudo)[2][2] == f"{flat['mean/pseudo_recall@5']:.3f}"


def test_published_table_has_a_row_for_this_run(evaluation: RetrievalEvaluation) -> None:
    flat = evaluation.results["test"].metrics
    table = build_tables(evaluation)[1]
    assert headers(table) == [
        "model", "wit\nR@10", "infoseek\nR@5", "infoseek\nPR@5", "evqa\nR@5", "okvqa\nR@5", "okvqa\nPR@5",
    ]  # fmt: skip
    assert rows(table)[0] == ("ReT CLIP ViT-L/14", "0.734", "0.470", "0.605", "0.445", "0.202", "0.662")
    assert rows(table)[-1][:3] == ("this run", f"{flat['wit/recall@10']:.3f}", f"{flat['infoseek/recall@5']:.3f}")


def test_full_published_table_is_not_truncated(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {f"{subset}/{metric}": 0.1234 for subset, metric in M2KR_PUBLISHED.metrics}
    print_tables([build_published_table(M2KR_PUBLISHED, metrics, "a model of mine")])
    printed = capsys.readouterr().out
    assert "PreFLMR ViT-L (text-only passages)" in printed
    assert "…" not in printed
    (line,) = (line for line in printed.splitlines() if "a model of mine" in line)
    assert re.findall(r"\d\.\d+", line) == ["0.123"] * 11
