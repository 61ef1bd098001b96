"""The loggers of a run, and how a resumed run continues what they wrote."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from ret_lightning.config.build import build
from ret_lightning.runs.resume.csv_rows import resume_csv
from ret_lightning.runtime.atomic_files import write_text

log = logging.getLogger(__name__)

WANDB_ID_FILE = "wandb/run_id"
_WANDB_STEP = "wandb_step"  # key of a checkpoint
_ROWS_AFTER_CHECKPOINT = 10_000  # more than a run logs between two checkpoints; gaps in the count do no harm


@dataclass(frozen=True)
class Resumed:
    """Where a run resumes.

    Attributes:
        step: optimiser steps of the checkpoint.
        unlogged_row: the row of the last of them, if it may not have been logged.
        on_commit: takes what is to be called when the run has really started.
        on_abandon: takes what is to be called when it ended before that.
    """

    step: int
    unlogged_row: dict[str, Any] | None
    on_commit: list[Callable[[], None]] = field(default_factory=list)
    on_abandon: list[Callable[[], None]] = field(default_factory=list)


def build_loggers(config: DictConfig, folder: Path, resumed: Resumed | None) -> list[Logger]:
    """The loggers of the group `logger`.

    Args:
        config: the run's.
        folder: the run's.
        resumed: of a resumed run, where it resumes; None for a new one. The CSV file keeps what was logged up to there, and
            W&B continues the same run.
    """
    loggers = []
    first = rank_zero_only.rank == 0
    for name, node in config.logger.items():
        if node is None:
            continue
        is_wandb = str(OmegaConf.select(node, "_target_")).endswith("WandbLogger")
        if is_wandb and _wandb_is_disabled():
            log.info("logger.%s is left out, since the environment disables W&B", name)
            continue
        logger = build(node, **(_of_wandb(node, config, folder, resumed is not None) if is_wandb else {}))
        if first and isinstance(logger, CSVLogger) and resumed is not None:
            resumed.on_commit.append(resume_csv(logger, resumed.step, resumed.unlogged_row).release)
        elif first and resumed is not None and (own := _own_folder(logger, folder, is_wandb)) is not None:
            resumed.on_abandon.append(_Entries(own).restore)
        chosen = getattr(logger, "_wandb_init", {})
        if chosen.get("anonymous") is None:
            # Lightning hands on what nobody chose, and W&B warns at the head of every run that it has no effect.
            chosen.pop("anonymous", None)
        loggers.append(logger)
    return loggers


def _wandb_is_disabled() -> bool:
    disabled = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1")
    return disabled or os.environ.get("WANDB_MODE") == "disabled"


def _own_folder(logger: Logger, run_folder: Path, is_wandb: bool) -> Path | None:
    """The folder below the run's that only this logger writes to; None where there is none."""
    if is_wandb:
        return run_folder / "wandb"
    own = Path(logger.log_dir) if isinstance(logger, TensorBoardLogger) else None
    return own if own is not None and run_folder in own.parents else None


class _Entries:
    """What a folder of a logger holds before a resumed run starts.

    Args:
        folder: it may be missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._links = {path.name: _target(path) for path in folder.iterdir()} if folder.is_dir() else None

    def restore(self) -> None:
        """Remove what was added since, and point links to where they pointed."""
        if self._links is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for path in list(self.folder.iterdir()):
            if path.name not in self._links:
                _remove(path)
            elif (target := self._links[path.name]) is not None and _target(path) != target:
                _remove(path)
                path.symlink_to(target)


def _target(path: Path) -> str | None:
    return os.readlink(path) if path.is_symlink() else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def record_wandb_run(loggers: list[Logger], folder: Path) -> None:
    """Store the id of the W&B run, so that it can be resumed; of an offline run that is, log how to sync its parts."""
    if rank_zero_only.rank != 0:
        return
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            continue
        run = logger.experiment
        resumed = (folder / WANDB_ID_FILE).is_file()
        write_text(folder / WANDB_ID_FILE, run.id + "\n")
        parts = sorted((folder / "wandb").glob(f"offline-run-*-{run.id}"))
        if resumed and run.offline and len(parts) > 1:
            log.info(
                "W&B run %s is offline and has %d parts now, one per start; upload all of them by one command, in this order: "
                "wandb sync --include-synced %s",
                run.id, len(parts), folder / "wandb" / f"offline-run-*-{run.id}",
            )  # fmt: skip


class WandbStep(Callback):
    """Continues W&B's step count in an offline run that is resumed, each part of which would count from 0.

    Otherwise rows of a later part could replace those of an earlier one when both are uploaded.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the count."""
        for run in _offline_runs(trainer):
            checkpoint[_WANDB_STEP] = run.step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue beyond every row of the earlier parts, also those that were logged after the checkpoint."""
        if trainer.state.fn != TrainerFn.FITTING or _WANDB_STEP not in checkpoint:
            return
        for run in _offline_runs(trainer):
            run.log({}, step=checkpoint[_WANDB_STEP] + _ROWS_AFTER_CHECKPOINT, commit=False)


def _offline_runs(trainer: Trainer) -> list[Any]:
    loggers = trainer.loggers if trainer.is_global_zero else []
    runs = [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]
    return [run for run in runs if run.offline]


def log_config(loggers: Sequence[Logger], config: DictConfig) -> None:
    """Log the resolved config as hyperparameters."""
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)
    for logger in loggers:
        logger.log_hyperparams(resolved)


def log_tables(loggers: Sequence[Logger], tables: Sequence[Table]) -> None:
    """Puts the tables that a run ends with on W&B, under `summary/<title>`."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for table in tables:
                columns = [str(column.header).replace("\n", " ") for column in table.columns]
                rows = zip(*(_numbers([str(cell) for cell in column.cells]) for column in table.columns), strict=True)
                logger.log_table(f"summary/{table.title}", columns=columns, data=[list(row) for row in rows])


def _numbers(cells: list[str]) -> list[str] | list[float | None]:
    """The numbers of a column, where there are nothing but numbers in it, which a dashboard can then sort and plot.

    The mark of a main metric goes, which is one of the run's summary besides.
    """
    try:
        return [float(cell.removeprefix("*")) if cell else None for cell in cells]
    except ValueError:
        return cells


def _of_wandb(node: DictConfig, config: DictConfig, folder: Path, resumed: bool) -> dict[str, Any]:
    """What a W&B run is called, where its config leaves that open, and which one is resumed."""
    named = {"name": folder.name, "group": OmegaConf.select(config, "sweep")}
    given = {key: value for key, value in named.items() if OmegaConf.select(node, key) is None and value is not None}
    file = folder / WANDB_ID_FILE
    if resumed and file.is_file():
        given |= {"id": file.read_text(encoding="utf-8").strip(), "resume": "allow"}
    return given
