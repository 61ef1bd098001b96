"""Sweeps with launcher and sweeper plugins of Hydra."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from tests.support.small_runs import sweep, written

pytestmark = pytest.mark.slow

RANKS = ("trainer=ddp_cpu", "data.batch_size=4")
SPY = "+callbacks.spy={_target_:tests.support.recording_callbacks.Spy,folder:${output_dir}}"


def assert_same_settings(folder: Path, names: set[str]) -> list[dict]:
    """Assert that a folder contains only these runs and that their two ranks have equal settings; return the settings."""
    runs = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    assert {run.name for run in runs} == names or not names
    seen = []
    for run in runs:
        ranks = [json.loads((run / f"seen_by_rank_{rank}.json").read_text()) for rank in (0, 1)]
        assert ranks[0] == ranks[1]
        assert ranks[0]["lr"] == yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"]
        seen.append(ranks[0])
    return seen


def test_joblib_runs_jobs_of_two_ranks(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    options = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "optimizer.lr=1e-3,2e-3", *RANKS, SPY]
    options.append(f"output_dir={tmp_path / 'sweep'}")
    done = sweep(root, tmp_path, *options, environment={OWN_PACKAGES: "tests", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert [seen["lr"] for seen in assert_same_settings(tmp_path / "sweep", {"lr=0.001", "lr=0.002"})] == [1e-3, 2e-3]
    again = sweep(root, tmp_path, *options, environment={OWN_PACKAGES: "tests"})
    assert "2 finished" in again.stdout


def test_joblib_jobs_have_loader_workers(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    options = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2", "data.num_workers=1"]
    done = sweep(root, tmp_path, *options, f"output_dir={tmp_path / 'sweep'}", environment={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "sweep").keys() == {"seed=1", "seed=2"}


def test_random_search_with_two_ranks(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = sweep(
        root,
        tmp_path,
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=random",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.direction=maximize",
        "optimizer.lr=tag(log,interval(1e-4,1e-2))",
        *RANKS,
        SPY,
        f"output_dir={tmp_path / 'search'}",
        environment={OWN_PACKAGES: "tests"},
    )
    assert done.returncode == 0, done.stderr
    seen = assert_same_settings(tmp_path / "search", set())
    assert len({each["lr"] for each in seen}) == 2
    best = yaml.safe_load((tmp_path / "search/optimization_results.yaml").read_text())
    values = {
        json.loads((run / "origin.json").read_text())["best"]["val/mean/recall@5"]
        for run in (tmp_path / "search").glob("lr=*")
    }
    assert best["best_value"] == max(values)
    assert len(written(tmp_path / "search")) == 2


def test_submitit_runs_a_job(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = sweep(
        root,
        tmp_path,
        "hydra/launcher=submitit_local",
        "hydra.launcher.timeout_min=5",
        "seed=1",
        f"output_dir={tmp_path / 'sweep'}",
    )
    assert done.returncode == 0, done.stderr
    assert list(written(tmp_path / "sweep")) == ["run"]
