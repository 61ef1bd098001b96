"""States of the jobs of a sweep, determined by configs and not by folder names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from omegaconf import OmegaConf

from ret_lightning.config.sweeping import PlannedJob
from ret_lightning.runs.sweep_plan import describe_plans, plan_jobs
from tests.support.sweep_jobs import planned_job


def write_run(job: PlannedJob, metrics: bool = False, checkpoint: bool = False, failure: str | None = None) -> None:
    """Write the files of a run of the job."""
    (job.folder / "checkpoints").mkdir(parents=True)
    OmegaConf.save(job.config, job.folder / "config.yaml")
    if metrics:
        (job.folder / "metrics.json").write_text("{}")
    if checkpoint:
        (job.folder / "checkpoints/last.ckpt").touch()
    if failure:
        (job.folder / "failure.json").write_text(json.dumps({"error": failure}))


def test_states_depend_on_the_run_folders(tmp_path: Path) -> None:
    jobs = [planned_job(tmp_path / f"seed={seed}", f"seed={seed}") for seed in range(4)]
    write_run(jobs[0], metrics=True, checkpoint=True)
    write_run(jobs[1], checkpoint=True)
    write_run(jobs[2], failure="out of memory")
    plans = plan_jobs(jobs)
    assert [(plan.state, plan.failed) for plan in plans] == [
        ("finished", None),
        ("unfinished", None),
        ("new", "out of memory"),
        ("new", None),
    ]
    assert [plan.job.folder for plan in plans] == [job.folder for job in jobs]
    assert describe_plans(plans) == f"4 jobs in {tmp_path}: 1 finished, 1 to resume, 2 to start"


def test_renamed_folder_is_found_by_its_config(tmp_path: Path) -> None:
    job = planned_job(tmp_path / "seed=1", "seed=1")
    write_run(job, metrics=True)
    job.folder.rename(tmp_path / "the one for the paper")
    (plan,) = plan_jobs([job])
    assert (plan.state, plan.job.name) == ("finished", "the one for the paper")
    assert plan.job.config.output_dir == str(tmp_path / "the one for the paper")


def test_folder_of_another_config_is_not_used(tmp_path: Path) -> None:
    write_run(planned_job(tmp_path / "run", "seed=1", "optimizer.lr=0.5"), metrics=True)
    (plan,) = plan_jobs([planned_job(tmp_path / "run", "seed=1")])
    assert plan.state == "new"
    assert plan.job.folder.parent == tmp_path
    assert plan.job.name.startswith("run-")


def test_finished_folder_takes_precedence(tmp_path: Path) -> None:
    job = planned_job(tmp_path / "a", "seed=1")
    write_run(job, checkpoint=True)
    shutil.copytree(job.folder, tmp_path / "b")
    (tmp_path / "b/metrics.json").write_text("{}")
    (plan,) = plan_jobs([job])
    assert (plan.state, plan.job.name) == ("finished", "b")


def test_invalid_config_is_skipped(tmp_path: Path, caplog) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.yaml").write_text("a: [")
    (plan,) = plan_jobs([planned_job(tmp_path / "run", "seed=1")])
    assert plan.state == "new"
    assert "skipped: " in caplog.text
