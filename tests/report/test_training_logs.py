from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.report.run_folders import find_runs
from ret_lightning.report.training_logs import Log, curve, logged_gate_maps, read_log, speed
from tests.support.report_runs import make_run


@pytest.fixture
def logs(tmp_path: Path) -> list[Log]:
    for seed in (1, 3):
        make_run(tmp_path / str(seed), seed=seed, skill=0.4)
    return [read_log(run) for run in find_runs(tmp_path)[0]]


def test_a_curve_counts_the_steps_behind_a_value(logs: list[Log]) -> None:
    assert curve(logs[0], "mean/recall@5") == [(5, 0.08), (10, 0.18), (15, 0.28), (20, 0.38)]
    assert curve(logs[0], "mean/mrr@10") == []
    assert [speed(log) for log in logs] == [101, 103]


def test_a_gate_map_averages_stretches_and_seeds(logs: list[Log]) -> None:
    query, passage = logged_gate_maps(logs, columns=4)
    assert (query.side, query.rows, query.steps) == ("query", [("text", 0)], [5, 10, 15, 20])
    # step i was logged with i / 20, steps 0 to 4 in the first stretch
    assert query.values == [pytest.approx([0.1, 0.35, 0.6, 0.85])]
    assert (passage.side, passage.rows) == ("passage", [("forget", 1)])
    assert passage.values == [[0.25] * 4]


def test_fewer_steps_than_columns(logs: list[Log]) -> None:
    short = Log({"gate/query/text/step_00": [(1, 0.5), (3, 1.0)]})
    (only,) = logged_gate_maps([short])
    assert (only.steps, only.values) == ([1, 3], [[0.5, 1.0]])


def test_a_run_without_a_log_has_no_curves(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run/csv/metrics.csv").unlink()
    log = read_log(find_runs(tmp_path)[0][0])
    assert (log.series, curve(log, "mean/recall@5"), speed(log), logged_gate_maps([log])) == ({}, [], None, [])
