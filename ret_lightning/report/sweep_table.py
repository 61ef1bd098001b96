"""Table of the jobs of a sweep before it runs (`dry_run=true`): settings, state, parameters and memory."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.table import Table

from ret_lightning.config.nodes import to_plain
from ret_lightning.errors import UserError
from ret_lightning.report.run_folders import Run, last_checkpoint_step
from ret_lightning.report.variants import find_varied_settings
from ret_lightning.runs.memory_estimate import Footprint, estimate_footprint
from ret_lightning.runs.sweep_plan import JobPlan, describe_plans
from ret_lightning.runtime.console import console, printing

_MEMORY = ("weights", "gradients", "optimizer", "activations", "total")


def print_plans(plans: Sequence[JobPlan]) -> bool:
    """Print one row per job, and below it what the memory estimate includes. Nothing is written.

    Args:
        plans: of all jobs of a sweep, or of one run.

    Returns:
        Whether every model can be built.
    """
    runs = [Run(plan.job.folder, plan.job.name, to_plain(plan.job.config), {}, plan.job.choices) for plan in plans]
    settings, values = find_varied_settings(runs)
    table = Table(box=None, header_style="bold", pad_edge=False)
    several = len(plans) > 1
    if several:
        table.add_column("job", overflow="fold")
        for setting in settings:
            table.add_column(setting.name, overflow="fold")
        if len({run.seed for run in runs}) > 1:
            table.add_column("seed", justify="right")
    table.add_column("state", overflow="fold")
    table.add_column("parameters", justify="right")
    table.add_column("trainable", justify="right")
    for name in _MEMORY:
        table.add_column(name, justify="right")
    estimates: dict[str, Footprint | str] = {}
    for plan, run, own in zip(plans, runs, values, strict=True):
        cells = [plan.job.name, *(own[setting.name] for setting in settings)] if several else []
        if several and len({run.seed for run in runs}) > 1:
            cells.append(str(run.seed))
        # Jobs that differ by seed only share an estimate.
        variant = str(sorted(own.items()))
        if variant not in estimates:
            estimates[variant] = _estimate(plan)
        estimate = estimates[variant]
        if isinstance(estimate, str):
            table.add_row(*cells, f"cannot be built: {estimate}")
        else:
            sizes = [_gibibytes(getattr(estimate, name)) for name in _MEMORY]
            table.add_row(*cells, _state(plan), _millions(estimate.parameters), _millions(estimate.trained), *sizes)
    output = console(soft_wrap=False) if os.isatty(1) else console(width=200)
    built = [estimate for estimate in estimates.values() if isinstance(estimate, Footprint)]
    with printing():
        output.print(describe_plans(plans) if several else "one job", soft_wrap=True, highlight=False)
        output.print(table)
        if built:
            output.print(_assumptions(built), soft_wrap=True, highlight=False)
        output.print("Nothing was run or written.", highlight=False)
    return len(built) == len(estimates)


def _estimate(plan: JobPlan) -> Footprint | str:
    """Estimate the memory of a job; the error message if its model cannot be built."""
    try:
        return estimate_footprint(plan.job.config)
    except UserError as error:
        return error.message


def _state(plan: JobPlan) -> str:
    step = last_checkpoint_step(plan.job.folder) if plan.state == "unfinished" else None
    state = f"resumes from step {step}" if step else plan.state
    return f"{state}; failed: {plan.failed}" if plan.failed and plan.state != "finished" else state


def _assumptions(estimates: Sequence[Footprint]) -> str:
    rows = sorted({estimate.rows for estimate in estimates})
    ranks = sorted({estimate.ranks for estimate in estimates})
    number = f"{_alternatives(ranks)} rank" + ("" if ranks == [1] else "s")
    return (
        f"Memory in GiB per rank, {number}. Activations: those kept for the backward pass of {_alternatives(rows)} pairs with "
        "image and full-length text on both sides; CUDA context and allocator overhead are not included."
    )


def _alternatives(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.2f}"
