"""Loggers of a run, and how a resumed run continues their logs."""

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
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from ret_lightning.config.build import build
from ret_lightning.config.nodes import to_plain
from ret_lightning.runs.process import is_first_process
from ret_lightning.runs.resume.csv_rows import resume_csv
from ret_lightning.runtime.atomic_files import write_text

log = logging.getLogger(__name__)

WANDB_ID_FILE = "wandb/run_id"
_WANDB_STEP = "wandb_step"  # checkpoint key
_ROWS_AFTER_CHECKPOINT = 10_000  # more than a run logs between two checkpoints; W&B allows gaps


@dataclass(frozen=True)
class Resumed:
    """The state that a run resumes from.

    Attributes:
        step: optimizer steps of the checkpoint.
        unlogged_row: metrics of the last step, if they may not have been logged; else None.
        on_commit: functions to call when the resumed run takes over its folder.
        on_abandon: functions to call when the run ends before that.
    """

    step: int
    unlogged_row: dict[str, Any] | None
    on_commit: list[Callable[[], None]] = field(default_factory=list)
    on_abandon: list[Callable[[], None]] = field(default_factory=list)


def build_loggers(config: DictConfig, folder: Path, resumed: Resumed | None) -> list[Logger]:
    """Build the loggers of the config group `logger`.

    Args:
        config: config of the run.
        folder: run folder.
        resumed: state that a resumed run starts from; None for a new run. The CSV file keeps the rows up to this state, and
            W&B continues the same run.
    """
    loggers = []
    first = is_first_process()
    for name, node in config.logger.items():
        if node is None:
            continue
        is_wandb = str(OmegaConf.select(node, "_target_")).endswith("WandbLogger")
        if is_wandb and _is_wandb_disabled():
            log.info("logger.%s is skipped because the environment disables W&B", name)
            continue
        logger = build(node, **(_wandb_options(node, config, folder, resumed is not None) if is_wandb else {}))
        if first and isinstance(logger, CSVLogger) and resumed is not None:
            resumed.on_commit.append(resume_csv(logger, resumed.step, resumed.unlogged_row).release)
        elif first and resumed is not None and (own := _exclusive_folder(logger, folder, is_wandb)) is not None:
            resumed.on_abandon.append(_FolderEntries(own).restore)
        options = getattr(logger, "_wandb_init", {})
        if options.get("anonymous") is None:
            # Lightning passes the default to W&B, which warns that the option has no effect.
            options.pop("anonymous", None)
        loggers.append(logger)
    return loggers


def _is_wandb_disabled() -> bool:
    disabled = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1")
    return disabled or os.environ.get("WANDB_MODE") == "disabled"


def _exclusive_folder(logger: Logger, run_folder: Path, is_wandb: bool) -> Path | None:
    """Return the folder inside the run folder that only this logger writes to; None if there is none."""
    if is_wandb:
        return run_folder / "wandb"
    own = Path(logger.log_dir) if isinstance(logger, TensorBoardLogger) else None
    return own if own is not None and run_folder in own.parents else None


class _FolderEntries:
    """The entries of a logger's folder before a resumed run starts.

    Args:
        folder: folder of the logger; may be missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._links = {path.name: _link_target(path) for path in folder.iterdir()} if folder.is_dir() else None

    def restore(self) -> None:
        """Remove later entries, and restore the targets of symbolic links."""
        if self._links is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for path in list(self.folder.iterdir()):
            if path.name not in self._links:
                _remove(path)
            elif (target := self._links[path.name]) is not None and _link_target(path) != target:
                _remove(path)
                path.symlink_to(target)


def _link_target(path: Path) -> str | None:
    return os.readlink(path) if path.is_symlink() else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def record_wandb_run(loggers: list[Logger], folder: Path) -> None:
    """Store the id of the W&B run for a later resume, and log how to sync an offline run of several parts."""
    if not is_first_process():
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
                "W&B run %s is offline and has %d parts, one per start; to upload them in order: "
                "wandb sync --include-synced %s",
                run.id, len(parts), folder / "wandb" / f"offline-run-*-{run.id}",
            )  # fmt: skip


class WandbStep(Callback):
    """Callback that continues the W&B step count of a resumed offline run.

    Each part of an offline run starts at step 0 otherwise, and its rows would replace those of earlier parts on upload.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the W&B step in the checkpoint."""
        for run in _offline_runs(trainer):
            checkpoint[_WANDB_STEP] = run.step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue after all rows of the earlier parts, including rows logged after the checkpoint."""
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
    resolved = to_plain(config, resolve=True)
    for logger in loggers:
        logger.log_hyperparams(resolved)


def log_tables(loggers: Sequence[Logger], tables: Sequence[Table]) -> None:
    """Log the result tables of a run to W&B as `summary/<title>`."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for table in tables:
                columns = [str(column.header).replace("\n", " ") for column in table.columns]
                rows = zip(
                    *(_to_numbers([str(cell) for cell in column.cells]) for column in table.columns), strict=True
                )
                logger.log_table(f"summary/{table.title}", columns=columns, data=[list(row) for row in rows])


def _to_numbers(cells: list[str]) -> list[str] | list[float | None]:
    """Convert a column of numbers to floats, so that a dashboard can sort and plot it; other columns are unchanged.

    The `*` that marks a main metric is removed.
    """
    try:
        return [float(cell.removeprefix("*")) if cell else None for cell in cells]
    except ValueError:
        return cells


def _wandb_options(node: DictConfig, config: DictConfig, folder: Path, resumed: bool) -> dict[str, Any]:
    """Return the name and group of a W&B run if the config does not set them, and the id of a resumed run."""
    named = {"name": folder.name, "group": OmegaConf.select(config, "sweep")}
    given = {key: value for key, value in named.items() if OmegaConf.select(node, key) is None and value is not None}
    file = folder / WANDB_ID_FILE
    if resumed and file.is_file():
        given |= {"id": file.read_text(encoding="utf-8").strip(), "resume": "allow"}
    return given
