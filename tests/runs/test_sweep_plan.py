"""Which jobs of a sweep are finished, continue, or are new: decided by configs, not by folder names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from omegaconf import OmegaConf

from ret_lightning.config.sweeping import PlannedJob
from ret_lightning.runs.sweep_plan import describe_plans, plan_jobs
from tests.support.sweep_jobs import planned_job


def leave(job: PlannedJob, metrics: bool = False, checkpoint: bool = False, failure: str | None = None) -> None:
    """What a run of the job leaves in its folder."""
    (job.folder / "checkpoints").mkdir(parents=True)
    OmegaConf.save(job.config, job.folder / "config.yaml")
    if metrics:
        (job.folder / "metrics.json").write_text("{}")
    if checkpoint:
        (job.folder / "checkpoints/last.ckpt").touch()
    if failure:
        (job.folder / "failure.json").write_text(json.dumps({"error": failure}))


def test_states_follow_from_what_the_folders_hold(tmp_path: Path) -> None:
    jobs = [planned_job(tmp_path / f"seed={seed}", f"seed={seed}") for seed in range(4)]
    leave(jobs[0], metrics=True, checkpoint=True)
    leave(jobs[1], checkpoint=True)
    leave(jobs[2], failure="out of memory")
    plans = plan_jobs(jobs)
    assert [(plan.state, plan.failed) for plan in plans] == [
        ("finished", None),
        ("goes on", None),
        ("new", "out of memory"),
        ("new", None),
    ]
    assert [plan.job.folder for plan in plans] == [job.folder for job in jobs]
    assert describe_plans(plans) == f"4 jobs in {tmp_path}: 1 finished already, 1 to go on, 2 to run"


def test_a_renamed_folder_is_found_by_its_config(tmp_path: Path) -> None:
    job = planned_job(tmp_path / "seed=1", "seed=1")
    leave(job, metrics=True)
    job.folder.rename(tmp_path / "the one for the paper")
    (plan,) = plan_jobs([job])
    assert (plan.state, plan.job.name) == ("finished", "the one for the paper")
    assert plan.job.config.output_dir == str(tmp_path / "the one for the paper")


def test_a_folder_of_another_config_is_left_alone(tmp_path: Path) -> None:
    leave(planned_job(tmp_path / "run", "seed=1", "optimizer.lr=0.5"), metrics=True)
    (plan,) = plan_jobs([planned_job(tmp_path / "run", "seed=1")])
    assert plan.state == "new"
    assert plan.job.folder.parent == tmp_path
    assert plan.job.name.startswith("run-")


def test_of_two_folders_of_one_run_the_finished_one_counts(tmp_path: Path) -> None:
    job = planned_job(tmp_path / "a", "seed=1")
    leave(job, checkpoint=True)
    shutil.copytree(job.folder, tmp_path / "b")
    (tmp_path / "b/metrics.json").write_text("{}")
    (plan,) = plan_jobs([job])
    assert (plan.state, plan.job.name) == ("finished", "b")


def test_a_broken_config_is_passed_over(tmp_path: Path, caplog) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.yaml").write_text("a: [")
    (plan,) = plan_jobs([planned_job(tmp_path / "run", "seed=1")])
    assert plan.state == "new"
    assert "passed over: " in caplog.text
