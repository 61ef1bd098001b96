"""Curves, throughput and gate activations from CSV logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.report.run_folders import find_runs
from ret_lightning.report.training_logs import (
    TrainingLog,
    average_gate_maps,
    loss_curves,
    median_throughput,
    read_log,
    validation_curve,
)
from tests.support.report_runs import make_run


@pytest.fixture
def logs(tmp_path: Path) -> list[TrainingLog]:
    for seed in (1, 3):
        make_run(tmp_path / str(seed), seed=seed, skill=0.4)
    return [read_log(run) for run in find_runs(tmp_path)[0]]


def test_curve_counts_completed_steps(logs: list[TrainingLog]) -> None:
    assert validation_curve(logs[0], "mean/recall@5") == [(5, 0.08), (10, 0.18), (15, 0.28), (20, 0.38)]
    assert validation_curve(logs[0], "mean/mrr@10") == []
    assert [median_throughput(log) for log in logs] == [101, 103]


def test_loss_curve_averages_intervals(logs: list[TrainingLog]) -> None:
    # Step i logged 2 - 0.4 * i / 20; steps 0 to 4 are the first interval.
    averaged, _ = loss_curves(logs, intervals=4)
    assert dict(averaged) == pytest.approx({5: 1.96, 10: 1.86, 15: 1.76, 20: 1.66})
    assert [step for step, _ in loss_curves(logs)[1]] == list(range(1, 21))
    assert loss_curves([TrainingLog({"train/loss": [(1, 0.5), (4, 0.25)]})], intervals=2) == [[(2, 0.5), (4, 0.25)]]
    assert loss_curves([]) == []


def test_loss_curves_of_unequal_runs_have_the_same_steps() -> None:
    losses = [{step: 1 / step for step in range(1, last + 1)} for last in (7, 10, 13)]
    logs = [TrainingLog({"train/loss": list(each.items())}) for each in losses]
    *curves, missing = loss_curves([*logs, TrainingLog({})], intervals=3)
    assert [[step for step, _ in curve] for curve in curves] == [[2, 5, 7]] * 3
    assert all(
        dict(curve) == pytest.approx({2: 0.75, 5: (1 / 3 + 1 / 4 + 1 / 5) / 3, 7: (1 / 6 + 1 / 7) / 2})
        for curve in curves
    )
    assert missing == []


def test_gate_map_averages_intervals_and_seeds(logs: list[TrainingLog]) -> None:
    query, passage = average_gate_maps(logs, columns=4)
    assert (query.side, query.rows, query.steps) == ("query", [("text", 0)], [5, 10, 15, 20])
    # Step i logged the value i / 20; steps 0 to 4 are the first interval.
    assert query.values == [pytest.approx([0.1, 0.35, 0.6, 0.85])]
    assert (passage.side, passage.rows) == ("passage", [("forget", 1)])
    assert passage.values == [[0.25] * 4]


def test_gate_map_with_fewer_steps_than_columns(logs: list[TrainingLog]) -> None:
    short = TrainingLog({"gate/query/text/step_00": [(1, 0.5), (3, 1.0)]})
    (only,) = average_gate_maps([short])
    assert (only.steps, only.values) == ([1, 3], [[0.5, 1.0]])


def test_run_without_log_has_no_curves(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run/csv/metrics.csv").unlink()
    log = read_log(find_runs(tmp_path)[0][0])
    assert (log.series, validation_curve(log, "mean/recall@5")) == ({}, [])
    assert (median_throughput(log), average_gate_maps([log])) == (None, [])
