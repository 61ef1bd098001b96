"""Which jobs of a sweep are done, which go on, and which are to be run: told by their configs, not by their folders' names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ret_lightning.config.sweeping import PlannedJob, renamed
from ret_lightning.errors import UserError
from ret_lightning.runs.identity import config_fingerprint, of_the_run
from ret_lightning.runs.resume.resumed_config import stored_config
from ret_lightning.runs.resume.takeover import has_checkpoint
from ret_lightning.runtime.run_layout import CONFIG_FILE, FAILURE_FILE, METRICS_FILE, read_json

log = logging.getLogger(__name__)

State = Literal["finished", "goes on", "new"]


@dataclass(frozen=True)
class JobPlan:
    """What becomes of a job.

    Attributes:
        job: in the folder that holds its run, or will.
        state: finished: nothing is to be done; goes on: it was cut off and has a checkpoint; new: it begins.
        failed: what its last attempt ended with, if that failed.
    """

    job: PlannedJob
    state: State
    failed: str | None = None


def plan_jobs(jobs: Sequence[PlannedJob]) -> list[JobPlan]:
    """Finds the run of each job among the folders of the sweep.

    Args:
        jobs: of one sweep.

    Returns:
        One plan a job. A job whose folder is taken by a run of another config gets a folder of its own.
    """
    there = _runs_in({job.folder.parent for job in jobs})
    plans = []
    for job in jobs:
        print_ = config_fingerprint(of_the_run(job.config))
        folder = there.get(print_)
        if folder is not None:
            job = renamed(job, folder)
        elif job.folder in there.values():
            job = renamed(job, job.folder.with_name(f"{job.name}-{print_[:6]}"))
        plans.append(JobPlan(job, _state(job.folder), read_json(job.folder / FAILURE_FILE).get("error")))
    return plans


def describe_plans(plans: Sequence[JobPlan]) -> str:
    """The plans in a line."""
    counts = {state: sum(p.state == state for p in plans) for state in ("finished", "goes on", "new")}
    words = {"finished": "finished already", "goes on": "to go on", "new": "to run"}
    parts = ", ".join(f"{count} {words[state]}" for state, count in counts.items() if count)
    return f"{len(plans)} jobs in {plans[0].job.folder.parent}: {parts}"


def _runs_in(sweeps: set[Path]) -> dict[str, Path]:
    """Fingerprints of what lies in the sweeps' folders; of two that are the same run, the finished one."""
    found: dict[str, Path] = {}
    for sweep in sweeps:
        for file in sorted(sweep.glob(f"*/{CONFIG_FILE}")):
            try:
                key = config_fingerprint(of_the_run(stored_config(file.parent)))
            except UserError as error:
                log.warning("passed over: %s", error)
                continue
            if key not in found or (file.parent / METRICS_FILE).exists():
                found[key] = file.parent
    return found


def _state(folder: Path) -> State:
    if (folder / METRICS_FILE).exists():
        return "finished"
    return "goes on" if has_checkpoint(folder) else "new"
