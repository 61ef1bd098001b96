"""Table of a sweep for dry_run=true."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.errors import ConfigError
from ret_lightning.report import sweep_table
from ret_lightning.report.sweep_table import print_plans
from ret_lightning.runs.memory_estimate import Footprint
from ret_lightning.runs.sweep_plan import JobPlan
from tests.support.sweep_jobs import planned_job

GIB = 2**30
NEEDED = Footprint(1_500_000, 500_000, GIB, GIB // 2, GIB // 4, GIB // 8, rows=8, ranks=2)


def printed_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_table_has_one_row_per_job(tmp_path: Path, monkeypatch, capsys) -> None:
    estimated = []
    monkeypatch.setattr(sweep_table, "estimate_footprint", lambda config: estimated.append(config) or NEEDED)
    jobs = [planned_job(tmp_path / f"{g}_{s}", f"gate={g}", f"seed={s}") for g in ("lstm", "none") for s in (1, 2)]
    states = [("finished", "lost"), ("unfinished", None), ("new", "out of memory"), ("new", None)]
    assert print_plans([JobPlan(job, *state) for job, state in zip(jobs, states, strict=True)])
    lines = printed_lines(capsys)
    memory = "1.50 M 0.50 M 1.00 0.50 0.25 0.12 1.88"
    for expected in (
        f"lstm_1 lstm 1 finished {memory}",
        f"lstm_2 lstm 2 unfinished {memory}",
        f"none_1 none 1 new; failed: out of memory {memory}",
        f"none_2 none 2 new {memory}",
    ):
        assert expected in lines
    assert len(estimated) == 2  # jobs that differ by seed share an estimate
    (note,) = [line for line in lines if line.startswith("Memory in GiB per rank, 2 ranks.")]
    assert "of 8 pairs" in note
    assert list(tmp_path.iterdir()) == []


def test_invalid_model_is_reported_in_its_row(tmp_path: Path, monkeypatch, capsys) -> None:
    def estimate_footprint(config) -> Footprint:
        if "no" in config.model.gate._target_.lower():
            raise ConfigError("no such width", code="x")
        return NEEDED

    monkeypatch.setattr(sweep_table, "estimate_footprint", estimate_footprint)
    plans = [JobPlan(planned_job(tmp_path / gate, f"gate={gate}"), "new") for gate in ("lstm", "none")]
    assert not print_plans(plans)
    lines = printed_lines(capsys)
    assert any(line.startswith("none none cannot be built: no such width") for line in lines)
    assert any(line.startswith("lstm lstm new 1.50 M") for line in lines)
