"""Plan of a sweep: which jobs are finished, unfinished or new, identified by their configs and not by folder names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ret_lightning.config.sweeping import PlannedJob, move_job
from ret_lightning.errors import UserError
from ret_lightning.runs.identity import config_fingerprint, run_identity
from ret_lightning.runs.resume.resumed_config import stored_config
from ret_lightning.runs.resume.takeover import has_checkpoint
from ret_lightning.runtime.run_layout import CONFIG_FILE, FAILURE_FILE, METRICS_FILE, read_json

log = logging.getLogger(__name__)

State = Literal["finished", "unfinished", "new"]


@dataclass(frozen=True)
class JobPlan:
    """The plan for a job.

    Attributes:
        job: the job, with the folder of its run.
        state: finished: nothing to do; unfinished: resumed from its checkpoint; new: started from the beginning.
        failed: error message of the last attempt, if it failed.
    """

    job: PlannedJob
    state: State
    failed: str | None = None


def plan_jobs(jobs: Sequence[PlannedJob]) -> list[JobPlan]:
    """Find the run of each job among the folders of its sweep.

    Args:
        jobs: jobs of one sweep.

    Returns:
        One plan per job. A job whose folder contains a run of another config gets a new folder.
    """
    existing = _find_runs({job.folder.parent for job in jobs})
    plans = []
    for job in jobs:
        fingerprint = config_fingerprint(run_identity(job.config))
        folder = existing.get(fingerprint)
        if folder is not None:
            job = move_job(job, folder)
        elif job.folder in existing.values():
            job = move_job(job, job.folder.with_name(f"{job.name}-{fingerprint[:6]}"))
        plans.append(JobPlan(job, _find_state(job.folder), read_json(job.folder / FAILURE_FILE).get("error")))
    return plans


def describe_plans(plans: Sequence[JobPlan]) -> str:
    """Return the number of jobs in each state, in one line."""
    words = {"finished": "finished", "unfinished": "to resume", "new": "to start"}
    counts = {state: sum(plan.state == state for plan in plans) for state in words}
    parts = ", ".join(f"{count} {words[state]}" for state, count in counts.items() if count)
    return f"{len(plans)} jobs in {plans[0].job.folder.parent}: {parts}"


def _find_runs(sweeps: set[Path]) -> dict[str, Path]:
    """Map the fingerprint of each run in the sweep folders to its folder, preferring finished runs."""
    found: dict[str, Path] = {}
    for sweep in sweeps:
        for file in sorted(sweep.glob(f"*/{CONFIG_FILE}")):
            try:
                key = config_fingerprint(run_identity(stored_config(file.parent)))
            except UserError as error:
                log.warning("skipped: %s", error)
                continue
            if key not in found or (file.parent / METRICS_FILE).exists():
                found[key] = file.parent
    return found


def _find_state(folder: Path) -> State:
    if (folder / METRICS_FILE).exists():
        return "finished"
    return "unfinished" if has_checkpoint(folder) else "new"
