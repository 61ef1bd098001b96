"""Finished and unfinished run folders below a folder."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ret_lightning.config.targets.renamed_keys import current_metric
from ret_lightning.errors import ConfigError, UserError, split_code
from ret_lightning.runtime.run_layout import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    COST_FILE,
    FAILURE_FILE,
    METRICS_FILE,
    ORIGIN_FILE,
)
from ret_lightning.training.checkpointing import selection_queries

# Keys that identify a config.yaml of ret-train; W&B and other programs write files of that name too.
_RUN_KEYS = ("seed", "output_dir", "data", "model", "trainer")
_CHOICES_FILE = ".hydra/hydra.yaml"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: path of the run folder.
        name: path relative to the folder that was searched.
        config: resolved config.
        metrics: `<subset>/<metric>` to a value in [0, 1].
        choices: config group to the option in use, from `.hydra/hydra.yaml`; empty if that file is missing.
        origin: content of `origin.json`; empty if that file is missing.
        cost: content of `cost.json`; empty if that file is missing.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    metrics: dict[str, float]
    choices: dict[str, str] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def selected_on(self) -> str:
        """The queries on which the checkpoint was selected: `val`, `holdout`, `test`, `last` or `unknown`."""
        return selection_queries.from_run(self.origin, self.config)

    @property
    def code(self) -> str:
        """The code versions, each with a note if it had uncommitted changes."""
        versions = [f"{v['commit'][:10]}{' with uncommitted changes' if v['dirty'] else ''}" for v in self._commits()]
        return (
            ", then ".join(versions) or f"ret_lightning {self.origin.get('version', 'of unknown version')}, no commit"
        )

    @property
    def dirty(self) -> bool:
        """Whether the code had uncommitted changes."""
        return any(version["dirty"] for version in self._commits())

    def _commits(self) -> list[dict[str, Any]]:
        return self.origin.get("code", [])


@dataclass(frozen=True)
class UnfinishedRun:
    """A run without metrics.

    Attributes:
        folder: path of the run folder.
        name: path relative to the folder that was searched.
        reason: why the run is unfinished, and its last checkpoint.
    """

    folder: Path
    name: str
    reason: str


def find_runs(root: str | Path) -> tuple[list[Run], list[UnfinishedRun]]:
    """Find all runs at any depth below a folder, the folder itself included.

    Args:
        root: folder to search.

    Returns:
        Finished and unfinished runs, in the natural order of their names (2 before 10).

    Raises:
        ConfigError: if the folder does not exist, or contains no finished run.
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(
            f"runs={root}: no such folder; set it to the folder of the runs",
            code="runs-folder-missing",
            path=root,
        )
    folders = sorted(_folders(root), key=lambda folder: [_natural(part) for part in folder.parts])
    found = [run for run in (_read(folder, root) for folder in folders) if run is not None]
    finished = [run for run in found if isinstance(run, Run)]
    unfinished = [run for run in found if isinstance(run, UnfinishedRun)]
    if not found:
        raise ConfigError(
            f"runs={root}: contains no run folder, expected a {CONFIG_FILE} of ret-train at any depth",
            code="runs-none-found",
            path=root,
        )
    if not finished:
        reasons = "; ".join(f"{run.name}: {run.reason}" for run in unfinished[:3])
        more = f"; and {len(unfinished) - 3} more" if len(unfinished) > 3 else ""
        raise ConfigError(
            f"runs={root}: contains no finished run: {reasons}{more}",
            code="runs-none-finished",
            path=root,
            unfinished=tuple(run.name for run in unfinished),
        )
    return finished, unfinished


def _folders(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        # Hidden folders contain Hydra's config.yaml, and wandb folders one of W&B.
        subfolders[:] = [
            name for name in subfolders if not name.startswith(".") and name not in ("wandb", CHECKPOINTS_FOLDER)
        ]
        if CONFIG_FILE in files:
            yield Path(folder)


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _read(folder: Path, root: Path) -> Run | UnfinishedRun | None:
    name = folder.name if folder == root else folder.relative_to(root).as_posix()
    name = name.encode(errors="backslashreplace").decode()  # the name may contain bytes that are not UTF-8
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        return UnfinishedRun(folder, name, f"{CONFIG_FILE} cannot be read ({str(error).splitlines()[0]})")
    if not isinstance(config, dict) or any(key not in config for key in _RUN_KEYS):
        return None
    # W&B wraps each value in a mapping.
    if type(config["seed"]) is not int or not isinstance(config["output_dir"], str):
        return None
    if not (folder / METRICS_FILE).is_file():
        return UnfinishedRun(folder, name, _why_unfinished(folder, config))
    try:
        metrics = _checked_metrics(_read_object(folder / METRICS_FILE))
        origin, cost = (
            _read_object(folder / name) if (folder / name).is_file() else {} for name in (ORIGIN_FILE, COST_FILE)
        )
    except ValueError as error:
        return UnfinishedRun(folder, name, str(error))
    return Run(folder, name, config, metrics, _choices(folder), origin, cost)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: expected a JSON object, got {type(content).__name__}")
    return content


def _checked_metrics(content: dict[str, Any]) -> dict[str, float]:
    for key, value in content.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{METRICS_FILE}: {key} is {value!r}, expected a finite number")
    if not content:
        raise ValueError(f"{METRICS_FILE} contains no metrics")
    return {current_metric(key): float(value) for key, value in content.items()}


def _why_unfinished(folder: Path, config: dict[str, Any]) -> str:
    checkpoint = _checkpoint_state(folder)
    if (folder / FAILURE_FILE).is_file():
        try:
            failure = _read_object(folder / FAILURE_FILE)
        except ValueError as error:
            return f"failed ({error}); {checkpoint}"
        message, _ = split_code(str(failure.get("error", "no reason given")))
        return f"{message}; {checkpoint}" if failure.get("stopped") else f"failed: {message}; {checkpoint}"
    if config.get("test_with") == "none":
        return f"not tested (test_with=none); {checkpoint}"
    return f"interrupted or still running (no {METRICS_FILE}); {checkpoint}"


def last_checkpoint_step(folder: Path) -> int | None:
    """Return the optimizer step of the last readable checkpoint of a run; None if there is none."""
    return max(_checkpoint_steps(folder)[0], default=(None, ""))[0]


def _checkpoint_state(folder: Path) -> str:
    steps, corrupted = _checkpoint_steps(folder)
    if steps:
        step, name = max(steps)
        return f"{name} at step {step}"
    return f"{', '.join(corrupted)} is corrupted" if corrupted else "no checkpoint"


def _checkpoint_steps(folder: Path) -> tuple[list[tuple[int, str]], list[str]]:
    """Return steps and names of the readable checkpoints, and the names of the corrupted ones."""
    from ret_lightning.training.checkpointing.checkpoint_io import read_step

    last = folder / CHECKPOINTS_FOLDER / "last.ckpt"
    files = [last] if last.is_file() else sorted((folder / CHECKPOINTS_FOLDER).glob("*.ckpt"))
    steps, corrupted = [], []
    for file in files:
        try:
            steps.append((read_step(file), file.name))
        except UserError:
            corrupted.append(file.name)
    return steps, corrupted


def _choices(folder: Path) -> dict[str, str]:
    try:
        stored = yaml.safe_load((folder / _CHOICES_FILE).read_text(encoding="utf-8"))
        choices = stored["hydra"]["runtime"]["choices"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return {}
    return {str(group): str(option) for group, option in choices.items() if "/" not in str(group)}
