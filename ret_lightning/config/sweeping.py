"""A sweep of several jobs: each in a folder named by what varies, and only those run that a command chooses."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ret_lightning.config.paths import make_paths_absolute
from ret_lightning.config.sweep_names import job_names, sweep_name
from ret_lightning.errors import ConfigError


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


class RunFolderSweeper(Sweeper):
    """Hydra's plugin around another sweeper, see `start_sweep`.

    Args:
        sweeper: the config of the sweeper that chooses the values of the jobs.
    """

    def __init__(self, sweeper: DictConfig) -> None:
        self.sweeper = sweeper

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]] | None:
        """Run the jobs that the command line's arguments name."""
        return start_sweep(self.context, self.task, self.config, self.sweeper, arguments)


class SweepSetup(Callback):
    """Puts our sweeper around the one that a config chooses; configs name it in `hydra.callbacks`."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before it makes the sweeper."""
        plugins, target = Plugins.instance(), f"{RunFolderSweeper.__module__}.{RunFolderSweeper.__name__}"
        plugins.register(RunFolderSweeper)
        if hasattr(plugins, "is_in_toplevel_plugins_module"):  # Hydra 1.3 takes plugins by names of this package only
            target = f"hydra_plugins.{target}"
            plugins.class_name_to_class[target] = RunFolderSweeper
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweeper = {"_target_": target, "_recursive_": False, "sweeper": config.hydra.sweeper}


def is_grid(hydra: DictConfig) -> bool:
    """Whether the jobs of a sweep are all combinations of its values; other sweepers choose values as they go.

    Args:
        hydra: the section `hydra` of a composed config.
    """
    return hydra.runtime.choices.get("hydra/sweeper") == "basic"


def start_sweep(
    context: HydraContext, task: TaskFunction, config: DictConfig, sweeper: DictConfig, arguments: list[str]
) -> list[Sequence[JobReturn]] | None:
    """Run the jobs of a multirun, by whichever launcher is configured.

    Args:
        context: Hydra's.
        task: what a job does. Its attribute `choose`, if it has one, is asked once for the jobs of a grid to run.
        config: the composed config of the multirun.
        sweeper: the config of the sweeper that chooses the values of the jobs.
        arguments: the command line's overrides, without those of Hydra's settings.

    Returns:
        What the jobs returned, batch by batch; None where another sweeper than the grid's ran, which takes the values for
        scores.
    """
    swept = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create(config_loader=context.config_loader).parse_overrides([*swept, *arguments])
    folder = _folder(config, parsed)
    place = [] if folder is None else [f"hydra.sweep.dir='{folder}'"]
    if not is_grid(config.hydra):
        if OmegaConf.select(config, "dry_run"):
            raise ConfigError(
                f"dry_run=true: hydra/sweeper={config.hydra.runtime.choices['hydra/sweeper']} chooses its jobs as it goes; "
                "a dry run lists those of Hydra's own sweeper",
                code="dry-run-sweeper",
            )
        place.append(f"hydra.sweep.subdir='${{job_name:[{','.join(_varying(parsed))}],${{hydra.overrides.task}}}}'")
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweeper = sweeper
        config.hydra.overrides.hydra.extend(place)  # the jobs are composed with these
        if folder is not None:
            config.hydra.sweep.dir = str(folder)
    wrapped: Any = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=task, config=config)
    if not is_grid(config.hydra):
        wrapped.sweep(arguments)
        return None
    choose: Choose = getattr(task, "choose", all_jobs)
    jobs = choose(_plan(context, config, parsed, wrapped.split_arguments(parsed, None)[0]))
    return _launch(jobs, wrapped.launcher, config, wrapped.max_batch_size) if jobs else []


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


def _plan(
    context: HydraContext, config: DictConfig, overrides: list[Override], commands: Sequence[Sequence[str]]
) -> list[PlannedJob]:
    keys = _varying(overrides)
    varies = [{key: value for key, value in map(_split, command) if key in keys} for command in commands]
    sweep_folder = Path(os.path.abspath(config.hydra.sweep.dir))
    folders = [sweep_folder / name for name in job_names(varies)]
    return [
        PlannedJob(folder.name, folder, own, tuple(command), *_compose(context, config, command, folder))
        for folder, own, command in zip(folders, varies, commands, strict=True)
    ]


def _launch(
    jobs: Sequence[PlannedJob], launcher: Launcher, config: DictConfig, batch_size: int | None
) -> list[Sequence[JobReturn]]:
    sweep_folder = Path(config.hydra.sweep.dir)
    sweep_folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, sweep_folder / "multirun.yaml")
    size = batch_size or len(jobs)
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
        composed.hydra.job.id, composed.hydra.job.num = "0", 0
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
