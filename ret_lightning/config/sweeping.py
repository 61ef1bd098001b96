"""A sweep of several jobs: each in a folder named by what varies, and only those run that a command chooses."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from ret_lightning.config.paths import make_paths_absolute
from ret_lightning.config.sweep_names import job_names, sweep_name
from ret_lightning.errors import ConfigError

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


@dataclass(frozen=True)
class PlannedJob:
    """A job of a sweep, before it runs.

    Attributes:
        name: of its folder, below the sweep's.
        folder: its run folder.
        varies: the keys that vary in the sweep, and their values as on a command line.
        overrides: its command line.
        config: composed and resolved; `output_dir` is the folder.
        choices: config group to its option.
    """

    name: str
    folder: Path
    varies: dict[str, str]
    overrides: tuple[str, ...]
    config: DictConfig
    choices: dict[str, str]


# Which of a sweep's jobs are to run, perhaps in other folders.
Choose = Callable[[Sequence[PlannedJob]], Sequence[PlannedJob]]


def start_sweep(
    app: Hydra, config_name: str, task: TaskFunction, overrides: list[str], choose: Choose
) -> list[Sequence[JobReturn]] | None:
    """Run the jobs of a multirun, by whichever launcher is configured.

    Args:
        app: initialised.
        config_name: the primary config.
        task: what a job does.
        overrides: the command line.
        choose: asked once for the jobs to run.

    Returns:
        What the jobs gave back, batch by batch, as Hydra's sweepers return it; None where another sweeper than Hydra's own
        ran, which takes the values for scores and gives back what it likes.
    """
    config = app.compose_config(config_name, overrides, run_mode=RunMode.MULTIRUN, with_log_configuration=True)
    parser = OverridesParser.create(config_loader=app.config_loader)
    swept = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    # Not resolved: an interpolation on the command line is each job's to resolve.
    typed = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    parsed = parser.parse_overrides([*swept, *typed])
    folder = _folder(config, parsed)
    place = [] if folder is None else [f"hydra.sweep.dir='{folder}'"]
    if config.hydra.sweeper._target_ != BASIC_SWEEPER:
        if OmegaConf.select(config, "dry_run"):
            raise ConfigError(
                f"dry_run=true: hydra/sweeper={config.hydra.runtime.choices['hydra/sweeper']} chooses its jobs as it goes; "
                "a dry run lists those of Hydra's own sweeper",
                code="dry-run-sweeper",
            )
        name = f"hydra.sweep.subdir='${{job_name:[{','.join(_varying(parsed))}],${{hydra.overrides.task}}}}'"
        app.multirun(config_name, task, [*overrides, *place, name])
        return None
    if folder is not None:
        with open_dict(config):
            config.hydra.sweep.dir = str(folder)
            config.hydra.overrides.hydra.extend(place)
    callbacks = Callbacks(config)
    context = HydraContext(config_loader=app.config_loader, callbacks=callbacks)
    jobs = choose(_plan(context, config, parsed))
    if not jobs:
        return []
    callbacks.on_multirun_start(config=config, config_name=config_name)
    results = _launch(jobs, context, task, config)
    callbacks.on_multirun_end(config=config, config_name=config_name)
    return results


def _folder(config: DictConfig, overrides: Sequence[Override]) -> Path | None:
    """The folder of a sweep that would be named by the time, so that the same command finds it again; None for others."""
    raw = OmegaConf.to_container(config, resolve=False)
    default = str(raw["hydra"]["sweep"]["dir"])
    if default in ("${output_dir}", "${expand_home:${output_dir}}"):
        default = str(raw["output_dir"])
    if "${now:" not in default:
        return None
    name = sweep_name(_varying(overrides), config.hydra.runtime.choices.get("experiment"))
    return Path(config.hydra.sweep.dir).parent / name


def _plan(context: HydraContext, config: DictConfig, overrides: list[Override]) -> list[PlannedJob]:
    keys = _varying(overrides)
    commands = BasicSweeper.split_arguments(overrides, None)[0]
    varies = [{key: value for key, value in map(_split, command) if key in keys} for command in commands]
    sweep_folder = Path(os.path.abspath(config.hydra.sweep.dir))
    folders = [sweep_folder / name for name in job_names(varies)]
    return [
        PlannedJob(folder.name, folder, own, tuple(command), *_compose(context, config, command, folder))
        for folder, own, command in zip(folders, varies, commands, strict=True)
    ]


def _launch(
    jobs: Sequence[PlannedJob], context: HydraContext, task: TaskFunction, config: DictConfig
) -> list[Sequence[JobReturn]]:
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
    sweep_folder = Path(config.hydra.sweep.dir)
    sweep_folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, sweep_folder / "multirun.yaml")
    size = config.hydra.sweeper.max_batch_size or len(jobs)
    results = []
    for first in range(0, len(jobs), size):
        batch = [[*job.overrides, f"hydra.sweep.subdir='{job.name}'"] for job in jobs[first : first + size]]
        results.append(launcher.launch(batch, initial_job_idx=first))
        for result in results[-1]:
            _ = result.return_value  # raises what the job raised
    return results


def renamed(job: PlannedJob, folder: Path) -> PlannedJob:
    """The job in another folder of the sweep."""
    config = job.config.copy()
    config.output_dir = str(folder)
    return replace(job, name=folder.name, folder=folder, config=config)


def _varying(overrides: Sequence[Override]) -> list[str]:
    """The keys that a sweep varies."""
    return [each.get_key_element() for each in overrides if each.is_sweep_override() and not each.is_hydra_override()]


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value


def _compose(
    context: HydraContext, config: DictConfig, command: Sequence[str], folder: Path
) -> tuple[DictConfig, dict[str, str]]:
    """The config as the job will see it, and the options that were chosen."""
    composed = context.config_loader.load_sweep_config(config, list(command))
    before = HydraConfig.instance().cfg
    with open_dict(composed):
        composed.hydra.runtime.output_dir = str(folder)
        composed.hydra.job.id = composed.hydra.job.num = 0
        HydraConfig.instance().set_config(composed)
        try:
            job = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
            job.output_dir = str(folder)
            make_paths_absolute(job)
            OmegaConf.resolve(job)
        finally:
            HydraConfig.instance().cfg = before
    choices = {str(key): str(option) for key, option in composed.hydra.runtime.choices.items() if "/" not in str(key)}
    return job, choices


def all_jobs(jobs: Sequence[PlannedJob]) -> Sequence[PlannedJob]:
    """Every job, as it is."""
    return jobs


def results_of(batches: Any) -> list[JobReturn]:
    """What the jobs gave back, in the order in which they were launched."""
    return [job for batch in batches or () for job in batch if isinstance(job, JobReturn)]
