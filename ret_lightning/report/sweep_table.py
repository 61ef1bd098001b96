"""A sweep before it runs, as a table: what varies, what became of each job before, what it takes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from omegaconf import OmegaConf
from rich.table import Table

from ret_lightning.errors import UserError
from ret_lightning.report.run_folders import Run, furthest_step
from ret_lightning.report.variants import differing
from ret_lightning.runs.memory_estimate import Footprint, footprint
from ret_lightning.runs.sweep_plan import JobPlan, describe_plans
from ret_lightning.runtime.console import console, printing

_MEMORY = ("weights", "gradients", "optimizer", "activations", "total")


def print_plans(plans: Sequence[JobPlan]) -> bool:
    """Prints a row a job, and what the figures leave out; whether every model can be built.

    Nothing is written anywhere.
    """
    runs = [
        Run(plan.job.folder, plan.job.name, OmegaConf.to_container(plan.job.config), {}, plan.job.choices)
        for plan in plans
    ]
    settings, values = differing(runs)
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
    table.add_column("trained", justify="right")
    for name in _MEMORY:
        table.add_column("optimiser" if name == "optimizer" else name, justify="right")
    known: dict[str, Footprint | str] = {}
    for plan, run, own in zip(plans, runs, values, strict=True):
        cells = [plan.job.name, *(own[setting.name] for setting in settings)] if several else []
        if several and len({run.seed for run in runs}) > 1:
            cells.append(str(run.seed))
        # What a seed does not change need not be worked out again.
        variant = str(sorted(own.items()))
        if variant not in known:
            known[variant] = _footprint(plan)
        needed = known[variant]
        if isinstance(needed, str):
            table.add_row(*cells, f"cannot be built: {needed}")
        else:
            sizes = [_gibibytes(getattr(needed, name)) for name in _MEMORY]
            table.add_row(*cells, _state(plan), _millions(needed.parameters), _millions(needed.trained), *sizes)
    shown = console(soft_wrap=False) if os.isatty(1) else console(width=200)
    found = [needed for needed in known.values() if isinstance(needed, Footprint)]
    with printing():
        shown.print(describe_plans(plans) if several else "one job", soft_wrap=True, highlight=False)
        shown.print(table)
        if found:
            shown.print(_assumed(found), soft_wrap=True, highlight=False)
        shown.print("Nothing was run or written.", highlight=False)
    return len(found) == len(known)


def _footprint(plan: JobPlan) -> Footprint | str:
    try:
        return footprint(plan.job.config)
    except UserError as error:
        return error.message


def _state(plan: JobPlan) -> str:
    step = furthest_step(plan.job.folder) if plan.state == "goes on" else None
    state = f"goes on from step {step}" if step else plan.state
    return f"{state}; failed: {plan.failed}" if plan.failed and plan.state != "finished" else state


def _assumed(found: Sequence[Footprint]) -> str:
    rows = sorted({needed.rows for needed in found})
    ranks = sorted({needed.ranks for needed in found})
    of = f"{_either(ranks)} rank" + ("" if ranks == [1] else "s")
    return (
        f"GiB a rank, of {of}. Activations: of {_either(rows)} pairs, each with an image and a text of full length on both "
        "sides, as the backward pass reads them; what PyTorch holds beside is not counted."
    )


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.2f}"
