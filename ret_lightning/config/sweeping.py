"""Sweeps of several jobs: each job has a folder named after the values that vary, and a command selects the jobs to run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
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

from ret_lightning.config.checker.sweep_params import find_renamed_params, rename_params
from ret_lightning.config.nodes import child_keys, to_plain
from ret_lightning.config.paths import make_paths_absolute
from ret_lightning.config.sweep_names import job_names, sweep_name
from ret_lightning.errors import ConfigError


@dataclass(frozen=True)
class PlannedJob:
    """A job of a sweep, before it runs.

    Attributes:
        name: name of the job's folder inside the folder of the sweep.
        folder: run folder of the job.
        varies: the keys that vary in the sweep, and their values as on a command line.
        overrides: overrides on the job's command line.
        config: composed and resolved config; its `output_dir` is `folder`.
        choices: chosen option of each config group.
    """

    name: str
    folder: Path
    varies: dict[str, str]
    overrides: tuple[str, ...]
    config: DictConfig
    choices: dict[str, str]


# Selects the jobs of a sweep to run; may move them to other folders.
Choose = Callable[[Sequence[PlannedJob]], Sequence[PlannedJob]]


class RunFolderSweeper(Sweeper):
    """Hydra sweeper plugin that wraps another sweeper and names the run folder of each job.

    Args:
        sweeper: config of the sweeper that chooses the values of the jobs.
    """

    def __init__(self, sweeper: DictConfig) -> None:
        self.sweeper = sweeper

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what Hydra passes before it calls `sweep`."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]] | None:
        """Run the jobs of the sweep that the arguments of the command line describe."""
        assert self.config is not None  # set by `setup`
        return start_sweep(self.context, self.task, self.config, self.sweeper, arguments)


class SweepSetup(Callback):
    """Hydra callback that wraps the configured sweeper in a `RunFolderSweeper`; configs list it in `hydra.callbacks`."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Replace the sweeper of the config by a `RunFolderSweeper` around it."""
        plugins, target = Plugins.instance(), f"{RunFolderSweeper.__module__}.{RunFolderSweeper.__name__}"
        plugins.register(RunFolderSweeper)
        if hasattr(plugins, "is_in_toplevel_plugins_module"):  # Hydra 1.3 accepts only plugins of this package
            target = f"hydra_plugins.{target}"
            plugins.class_name_to_class[target] = RunFolderSweeper
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweeper = {"_target_": target, "_recursive_": False, "sweeper": config.hydra.sweeper}


def is_grid(hydra: DictConfig | HydraConf) -> bool:
    """Return whether the jobs of a sweep are all combinations of its values.

    Other sweepers, such as Optuna, choose values during the sweep.

    Args:
        hydra: the node `hydra` of a composed config.
    """
    return hydra.runtime.choices.get("hydra/sweeper") == "basic"


def start_sweep(
    context: HydraContext, task: TaskFunction, config: DictConfig, sweeper: DictConfig, arguments: list[str]
) -> list[Sequence[JobReturn]] | None:
    """Run the jobs of a multirun with the configured launcher.

    Args:
        context: Hydra's context.
        task: function of a job. Its optional attribute `choose` selects the jobs of a grid to run and is called once.
        config: composed config of the multirun.
        sweeper: config of the sweeper that chooses the values of the jobs.
        arguments: overrides of the command line, without those of Hydra's own settings.

    Returns:
        The results of the jobs, one list per batch; None for sweepers other than a grid.

    Raises:
        ConfigError: if `dry_run=true` and the sweeper is not a grid.
    """
    _rename_params(context, config, sweeper, arguments)
    swept = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create(config_loader=context.config_loader).parse_overrides([*swept, *arguments])
    folder = _folder(config, parsed)
    folder_overrides = [] if folder is None else [f"hydra.sweep.dir='{folder}'"]
    if not is_grid(config.hydra):
        if OmegaConf.select(config, "dry_run"):
            chosen = config.hydra.runtime.choices["hydra/sweeper"]
            raise ConfigError(
                f"dry_run=true requires hydra/sweeper=basic, got {chosen}, which chooses values during the sweep; remove one "
                "of the two",
                code="dry-run-sweeper",
                key="hydra/sweeper",
                found=chosen,
                allowed=("basic",),
            )
        folder_overrides.append(
            f"hydra.sweep.subdir='${{job_name:[{','.join(_varying(parsed))}],${{hydra.overrides.task}}}}'"
        )
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweeper = sweeper
        config.hydra.overrides.hydra.extend(folder_overrides)  # applied when each job is composed
        if folder is not None:
            config.hydra.sweep.dir = str(folder)
    wrapped: Any = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=task, config=config)
    if not is_grid(config.hydra):
        wrapped.sweep(arguments)
        return None
    choose: Choose = getattr(task, "choose", choose_all)
    jobs = choose(_plan(context, config, parsed, wrapped.split_arguments(parsed, None)[0]))
    return _launch(jobs, wrapped.launcher, config, wrapped.max_batch_size) if jobs else []


def _rename_params(context: HydraContext, config: DictConfig, sweeper: DictConfig, arguments: list[str]) -> None:
    """Replace earlier option names in the parameters of a sweeper, in place."""
    loader, params = context.config_loader, sweeper.get("params") or {}
    renamed = find_renamed_params(
        params, arguments, loader, lambda job: loader.load_sweep_config(config, [each.input_line for each in job])
    )
    if renamed:
        with read_write(sweeper), open_dict(sweeper):
            sweeper.params = rename_params(params, renamed)


def _folder(config: DictConfig, overrides: Sequence[Override]) -> Path | None:
    """Return a folder that replaces a default with a time stamp, so that the same command finds it again; else None."""
    raw = to_plain(config)
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
            _ = result.return_value  # raises the exception of a failed job
    return results


def move_job(job: PlannedJob, folder: Path) -> PlannedJob:
    """Return a copy of the job in another folder of the sweep."""
    config = job.config.copy()
    config.output_dir = str(folder)
    return replace(job, name=folder.name, folder=folder, config=config)


def _varying(overrides: Sequence[Override]) -> list[str]:
    """Return the keys that a sweep varies."""
    return [each.get_key_element() for each in overrides if each.is_sweep_override() and not each.is_hydra_override()]


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value


def _compose(
    context: HydraContext, config: DictConfig, command: Sequence[str], folder: Path
) -> tuple[DictConfig, dict[str, str]]:
    """Return the resolved config of a job and the chosen option of each config group."""
    composed = context.config_loader.load_sweep_config(config, list(command))
    before = HydraConfig.instance().cfg
    with open_dict(composed):
        composed.hydra.runtime.output_dir = str(folder)
        composed.hydra.job.id, composed.hydra.job.num = "0", 0
        HydraConfig.instance().set_config(composed)
        try:
            job = OmegaConf.masked_copy(composed, [key for key in child_keys(composed) if key != "hydra"])
            job.output_dir = str(folder)
            make_paths_absolute(job)
            OmegaConf.resolve(job)
        finally:
            HydraConfig.instance().cfg = before
    choices = {str(key): str(option) for key, option in composed.hydra.runtime.choices.items() if "/" not in str(key)}
    return job, choices


def choose_all(jobs: Sequence[PlannedJob]) -> Sequence[PlannedJob]:
    """Return all jobs unchanged."""
    return jobs


def collect_results(batches: Any) -> list[JobReturn]:
    """Return the results of all jobs in launch order."""
    return [job for batch in batches or () for job in batch if isinstance(job, JobReturn)]
