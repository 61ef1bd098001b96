"""Sweeps through Hydra in this process: planned jobs, and the folders of the jobs that run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ret_lightning.config.initialization import hydra_initialized
from ret_lightning.config.sweeping import Choose, PlannedJob, choose_all, collect_results, move_job
from ret_lightning.errors import ConfigError
from tests.support.config_folder import write


@pytest.fixture(autouse=True)
def _empty_hydra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    GlobalHydra.instance().clear()


def settings_of_job(config: DictConfig) -> tuple[str, int, int]:
    return HydraConfig.get().runtime.output_dir, config.seed, config.trainer.max_epochs


def sweep(
    tmp_path: Path,
    *overrides: str,
    choose: Choose = choose_all,
    task: Callable[[DictConfig], Any] = settings_of_job,
    files: dict[str, str] | None = None,
) -> tuple[list[PlannedJob], list[Any]]:
    """Run a sweep, and return the planned jobs and the results of the jobs that ran."""
    planned: list[PlannedJob] = []

    def record(jobs: Sequence[PlannedJob]) -> Sequence[PlannedJob]:
        planned.extend(jobs)
        return choose(jobs)

    task.choose = record
    folder = write(tmp_path / "conf", files)
    quiet = ["hydra.mode=MULTIRUN", "hydra/job_logging=none", "hydra/hydra_logging=none"]
    with hydra_initialized([f"file://{folder}"], "train") as app:
        batches = app.hydra.multirun("train", task, [*overrides, *quiet])
    return planned, [job.return_value for job in collect_results(batches)]


def test_jobs_are_planned_with_config_and_folder(tmp_path: Path) -> None:
    planned, _ = sweep(tmp_path, "seed=1,2", "model.width=16", "gate@model.gate=lstm,none", choose=lambda jobs: [])
    assert [(job.config.seed, job.choices["gate@model.gate"]) for job in planned] == [
        (1, "lstm"), (1, "none"), (2, "lstm"), (2, "none"),
    ]  # fmt: skip
    assert [job.varies for job in planned[1:3]] == [
        {"seed": "1", "gate@model.gate": "none"},
        {"seed": "2", "gate@model.gate": "lstm"},
    ]
    for job in planned:
        assert job.config.model.width == 16
        assert job.config.output_dir == str(job.folder) == f"{tmp_path}/runs/sweep/{job.name}"
        assert "hydra" not in job.config
        assert set(job.overrides) >= {"model.width=16", f"seed={job.config.seed}"}
    assert len({job.name for job in planned}) == 4
    assert not (tmp_path / "runs").exists()


def test_jobs_run_as_planned(tmp_path: Path) -> None:
    planned, results = sweep(tmp_path, "seed=3,4", "trainer.max_epochs=5")
    assert results == [(str(job.folder), seed, 5) for job, seed in zip(planned, (3, 4), strict=True)]
    assert OmegaConf.load(tmp_path / "runs/sweep/multirun.yaml").trainer.max_epochs == 5


def test_only_chosen_jobs_run(tmp_path: Path) -> None:
    def last_elsewhere(jobs: Sequence[PlannedJob]) -> list[PlannedJob]:
        return [move_job(jobs[-1], jobs[-1].folder.with_name("elsewhere"))]

    planned, results = sweep(tmp_path, "seed=3,4,5", choose=last_elsewhere)
    assert len(planned) == 3
    assert results == [(f"{tmp_path}/runs/sweep/elsewhere", 5, 2)]


def test_failed_job_stops_before_the_next_batch(tmp_path: Path) -> None:
    ran: list[int] = []

    def task(config: DictConfig) -> float:
        ran.append(config.seed)
        return 1 / (config.seed - 2)

    with pytest.raises(ZeroDivisionError):
        sweep(tmp_path, "seed=3,2,1", "hydra.sweeper.max_batch_size=1", task=task)
    assert ran == [3, 2]


def test_move_job_keeps_the_original(tmp_path: Path) -> None:
    (job, *_), _ = sweep(tmp_path, "seed=1,2", choose=lambda jobs: [])
    moved = move_job(job, tmp_path / "other")
    assert (moved.name, moved.folder, moved.config.output_dir) == ("other", tmp_path / "other", f"{tmp_path}/other")
    assert job.config.output_dir == str(job.folder) != moved.config.output_dir


def test_earlier_keys_of_sweeper_params_are_planned(tmp_path: Path) -> None:
    params = "model.cells: 2,4\n      model.probes: 3"
    files = {
        "model/small": "_target_: ret_lightning.retrieval.FaissIndex\nnlist: 1",
        "experiment/demo": f"# @package _global_\nhydra:\n  sweeper:\n    params:\n      {params}",
    }
    planned, _ = sweep(tmp_path, "experiment=demo", choose=lambda jobs: [], files=files)
    assert [(job.name, job.config.model.nlist, job.config.model.nprobe) for job in planned] == [
        ("nlist=2", 2, 3),
        ("nlist=4", 4, 3),
    ]
    assert all("cells" not in job.config.model for job in planned)


@pytest.mark.parametrize("results", [None, [], [[]], [[0.1, 0.2]]])
def test_other_return_values_are_not_results(results: Any) -> None:
    assert collect_results(results) == []


def test_dry_run_requires_a_grid(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    with pytest.raises(ConfigError) as caught:
        sweep(tmp_path, "+dry_run=true", "hydra/sweeper=optuna", "seed=1,2")
    error = caught.value
    assert (error.code, error.key, error.found, error.allowed) == (
        "dry-run-sweeper",
        "hydra/sweeper",
        "optuna",
        ("basic",),
    )
    assert not (tmp_path / "runs").exists()
