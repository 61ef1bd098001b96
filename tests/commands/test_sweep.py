"""Sweeps of ret-train: names, resuming, and running only missing jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from ret_lightning.report.run_folders import find_runs
from tests.support.small_runs import m2kr, ret_train, sweep, written

pytestmark = pytest.mark.slow


def test_same_command_runs_only_missing_jobs(root: Path, tmp_path: Path) -> None:
    command = ["gate=lstm,none", "seed=1,2"]
    first = sweep(root, tmp_path, *command)
    assert first.returncode == 0, first.stderr
    runs = tmp_path / "runs" / "gate+seed"
    done = written(runs)
    assert sorted(done) == ["gate=lstm+seed=1", "gate=lstm+seed=2", "gate=none+seed=1", "gate=none+seed=2"]
    config = yaml.safe_load((runs / "gate=none+seed=2" / "config.yaml").read_text())
    assert (config["seed"], config["sweep"]) == (2, "gate+seed")

    # One job is missing, one has no test, and one folder is renamed.
    before = json.loads((runs / "gate=none+seed=1" / "metrics.json").read_text())
    (runs / "gate=none+seed=1" / "metrics.json").unlink()
    (runs / "gate=lstm+seed=2").rename(runs / "the one for the paper")
    for file in sorted((runs / "gate=lstm+seed=1").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (runs / "gate=lstm+seed=1").rmdir()
    again = sweep(root, tmp_path, *command)
    assert again.returncode == 0, again.stderr
    assert "4 jobs in" in again.stdout
    assert "2 finished, 1 to resume, 1 to start" in again.stdout
    assert "resuming from" in again.stdout
    now = written(runs)
    assert sorted(now) == ["gate=lstm+seed=1", "gate=none+seed=1", "gate=none+seed=2", "the one for the paper"]
    assert now["gate=none+seed=2"] == done["gate=none+seed=2"]
    assert now["the one for the paper"] == done["gate=lstm+seed=2"]
    assert json.loads((runs / "gate=none+seed=1" / "metrics.json").read_text()) == before

    # Jobs with the same names and another config get new folders.
    other = sweep(root, tmp_path, "gate=none", "seed=1,2", "optimizer.lr=3e-3", f"output_dir={runs}")
    assert other.returncode == 0, other.stderr
    assert written(runs).items() >= now.items()
    assert len(written(runs)) == 6
    assert len(find_runs(runs)[0]) == 6

    last = sweep(root, tmp_path, *command)
    assert "4 finished" in last.stdout
    assert "all jobs are finished" in last.stdout


def test_failed_job_is_reported_and_run_again(root: Path, tmp_path: Path) -> None:
    # Missing weights are detected when the model is built.
    command = [f"init_from=null,{tmp_path / 'nowhere'}", f"output_dir={tmp_path / 'sweep'}"]
    for _ in range(2):
        done = sweep(root, tmp_path, *command)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-2].startswith("ret-train: 1 of ")
        assert "nowhere: the folder does not exist" in done.stderr.splitlines()[-1]
        assert list(written(tmp_path / "sweep")) == ["init_from=null"]
    assert "1 finished, 1 to start" in done.stdout


def test_ranks_of_a_sweep_share_config_and_folder(root: Path, tmp_path: Path) -> None:
    # The learning rate differs each time the config is composed.
    done = sweep(
        root,
        tmp_path,
        "seed=1,2",
        "trainer=ddp_cpu",
        "data.batch_size=4",
        "optimizer.lr='${oc.decode:${now:0.00%f}}'",
        "+callbacks.spy={_target_:tests.support.recording_callbacks.Spy,folder:${output_dir}}",
        f"output_dir={tmp_path / 'sweep'}",
        environment={OWN_PACKAGES: "tests"},
    )
    assert done.returncode == 0, done.stderr
    assert sorted(written(tmp_path / "sweep")) == ["seed=1", "seed=2"]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == ["multirun.yaml", "seed=1", "seed=2"]
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]
    for run in ("seed=1", "seed=2"):
        seen = [json.loads((tmp_path / "sweep" / run / f"seen_by_rank_{rank}.json").read_text()) for rank in (0, 1)]
        assert seen[0] == seen[1]
        assert seen[0]["seed"] == int(run[-1])
        assert (
            seen[0]["lr"] == yaml.safe_load((tmp_path / "sweep" / run / "config.yaml").read_text())["optimizer"]["lr"]
        )


def test_dry_run_lists_jobs_and_writes_nothing(root: Path, tmp_path: Path) -> None:
    command = ["model.num_tokens=4,6", "seed=1,2", "dry_run=true"]
    done = sweep(root, tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[1:4] for line in lines if line and line[0].startswith("num_tokens=")] == [
        ["4", "1", "new"], ["4", "2", "new"], ["6", "1", "new"], ["6", "2", "new"]
    ]  # fmt: skip
    assert "Nothing was run or written." in done.stdout
    single = ret_train(*m2kr(root, "dry_run=true"), cwd=tmp_path)
    assert single.returncode == 0, single.stderr
    assert "one job" in single.stdout
    broken = sweep(root, tmp_path, "recurrence=evenly", "recurrence.steps=2,9", "dry_run=true")
    assert broken.returncode == 1
    assert "cannot be built: recurrence.steps=9" in broken.stdout
    assert broken.stderr.endswith("[dry-run-unbuildable]\n")
    assert "Traceback" not in broken.stderr
    assert list(tmp_path.iterdir()) == []
