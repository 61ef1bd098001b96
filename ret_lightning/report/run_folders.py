"""The run folders below a folder: which are finished, and what became of the others."""

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

# A config.yaml without these is not ret-train's: W&B and others write files of that name too.
_KEYS_OF_A_RUN = ("seed", "output_dir", "data", "model", "trainer")
_CHOICES_FILE = ".hydra/hydra.yaml"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it is.
        name: the folder, relative to the one that was searched.
        config: its resolved config.
        metrics: `<subset>/<metric>` to a value in [0, 1].
        choices: config group to the option that was chosen, as far as Hydra's notes tell.
        origin: as `origin.json`; empty where the run left none.
        cost: as `cost.json`; likewise.
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
        """The queries that its checkpoint was chosen on, see `training.checkpointing.selected_on`."""
        return selection_queries.of_run(self.origin, self.config)

    @property
    def code(self) -> str:
        """The code version in words, what was not committed included."""
        versions = [f"{v['commit'][:10]}{' with uncommitted changes' if v['dirty'] else ''}" for v in self._commits()]
        return (
            ", then ".join(versions) or f"ret_lightning {self.origin.get('version', 'of unknown version')}, no commit"
        )

    @property
    def dirty(self) -> bool:
        """Whether it was made by code that no commit holds."""
        return any(version["dirty"] for version in self._commits())

    def _commits(self) -> list[dict[str, Any]]:
        return self.origin.get("code", [])


@dataclass(frozen=True)
class Unfinished:
    """A run without metrics, and why, as far as its folder tells."""

    folder: Path
    name: str
    reason: str


def find_runs(root: str | Path) -> tuple[list[Run], list[Unfinished]]:
    """All runs at any depth below a folder, itself included, in the natural order of their names (2 before 10).

    Raises:
        ConfigError: if there is no such folder, or no finished run in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f"runs={root}: no such folder", code="runs-folder-missing", path=root)
    folders = sorted(_folders(root), key=lambda folder: [_natural(part) for part in folder.parts])
    found = [run for run in (_read(folder, root) for folder in folders) if run is not None]
    finished = [run for run in found if isinstance(run, Run)]
    unfinished = [run for run in found if isinstance(run, Unfinished)]
    if not found:
        raise ConfigError(
            f"runs={root}: no run folder in it, at any depth (one has a {CONFIG_FILE} of ret-train)",
            code="runs-none-found",
            path=root,
        )
    if not finished:
        told = "; ".join(f"{run.name}: {run.reason}" for run in unfinished[:3])
        more = f"; and {len(unfinished) - 3} more" if len(unfinished) > 3 else ""
        raise ConfigError(
            f"runs={root}: no finished run in it. {told}{more}",
            code="runs-none-finished",
            path=root,
            unfinished=tuple(run.name for run in unfinished),
        )
    return finished, unfinished


def _folders(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        # Hidden ones hold Hydra's config.yaml, W&B's its own.
        below[:] = [name for name in below if not name.startswith(".") and name not in ("wandb", CHECKPOINTS_FOLDER)]
        if CONFIG_FILE in files:
            yield Path(folder)


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _read(folder: Path, root: Path) -> Run | Unfinished | None:
    name = folder.name if folder == root else folder.relative_to(root).as_posix()
    name = name.encode(errors="backslashreplace").decode()  # bytes of a file name that are not UTF-8
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        return Unfinished(folder, name, f"{CONFIG_FILE} cannot be read ({str(error).splitlines()[0]})")
    if not isinstance(config, dict) or any(key not in config for key in _KEYS_OF_A_RUN):
        return None
    if type(config["seed"]) is not int or not isinstance(config["output_dir"], str):  # W&B wraps values
        return None
    if not (folder / METRICS_FILE).is_file():
        return Unfinished(folder, name, _why_unfinished(folder, config))
    try:
        metrics = _numbers(_object(folder / METRICS_FILE))
        origin, cost = (
            _object(folder / name) if (folder / name).is_file() else {} for name in (ORIGIN_FILE, COST_FILE)
        )
    except ValueError as error:
        return Unfinished(folder, name, str(error))
    return Run(folder, name, config, metrics, _choices(folder), origin, cost)


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read ({error}); is it whole?") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return content


def _numbers(content: dict[str, Any]) -> dict[str, float]:
    for key, value in content.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{METRICS_FILE}: {key} is {value!r}, not a finite number")
    if not content:
        raise ValueError(f"{METRICS_FILE} holds no metric")
    return {current_metric(key): float(value) for key, value in content.items()}


def _why_unfinished(folder: Path, config: dict[str, Any]) -> str:
    far = _how_far(folder)
    if (folder / FAILURE_FILE).is_file():
        try:
            failure = _object(folder / FAILURE_FILE)
        except ValueError as error:
            return f"failed ({error}); {far}"
        told, _ = split_code(str(failure.get("error", "no reason given")))
        return f"{told}; {far}" if failure.get("stopped") else f"failed: {told}; {far}"
    if config.get("test_with") == "none":
        return f"not tested (test_with=none); {far}"
    return f"cut off, or still running (no {METRICS_FILE}); {far}"


def furthest_step(folder: Path) -> int | None:
    """Optimiser steps behind the last whole checkpoint of a run; None where there is none."""
    return max(_steps(folder)[0], default=(None, ""))[0]


def _how_far(folder: Path) -> str:
    steps, torn = _steps(folder)
    if steps:
        step, name = max(steps)
        return f"{name} is of step {step}"
    return f"{', '.join(torn)} is torn" if torn else "no checkpoint"


def _steps(folder: Path) -> tuple[list[tuple[int, str]], list[str]]:
    """Steps and names of the checkpoints that are whole, and the names of those that are not."""
    from ret_lightning.training.checkpointing.checkpoint_io import stored_step

    last = folder / CHECKPOINTS_FOLDER / "last.ckpt"
    files = [last] if last.is_file() else sorted((folder / CHECKPOINTS_FOLDER).glob("*.ckpt"))
    steps, torn = [], []
    for file in files:
        try:
            steps.append((stored_step(file), file.name))
        except UserError:
            torn.append(file.name)
    return steps, torn


def _choices(folder: Path) -> dict[str, str]:
    try:
        noted = yaml.safe_load((folder / _CHOICES_FILE).read_text(encoding="utf-8"))
        choices = noted["hydra"]["runtime"]["choices"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return {}
    return {str(group): str(option) for group, option in choices.items() if "/" not in str(group)}
