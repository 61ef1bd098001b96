"""The loggers of a run, and how a resumed run continues what they wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from ret_lightning.atomic import write_text
from ret_lightning.config.build import build
from ret_lightning.training.csv_rows import resume_csv

WANDB_ID_FILE = "wandb/run_id"


@dataclass(frozen=True)
class Resumed:
    """Where a run resumes.

    Attributes:
        step: optimiser steps of the checkpoint.
        unlogged_row: the row of the last of them, if it may not have been logged.
        on_commit: takes what is to be called when the run has really started.
    """

    step: int
    unlogged_row: dict[str, Any] | None
    on_commit: list[Callable[[], None]]


def build_loggers(config: DictConfig, folder: Path, resumed: Resumed | None) -> list[Logger]:
    """The loggers of the group `logger`.

    Args:
        config: the run's.
        folder: the run's.
        resumed: of a resumed run, where it resumes; None for a new one. The CSV file keeps what was logged up to there, and
            W&B continues the same run.
    """
    loggers = []
    for node in config.logger.values():
        if node is None:
            continue
        logger = build(node, **_of_wandb(node, config, folder, resumed is not None))
        if rank_zero_only.rank == 0 and isinstance(logger, CSVLogger) and resumed is not None:
            resumed.on_commit.append(resume_csv(logger, resumed.step, resumed.unlogged_row).release)
        chosen = getattr(logger, "_wandb_init", {})
        if chosen.get("anonymous") is None:
            # Lightning hands on what nobody chose, and W&B warns at the head of every run that it has no effect.
            chosen.pop("anonymous", None)
        loggers.append(logger)
    return loggers


def record_wandb_run(loggers: list[Logger], folder: Path) -> None:
    """Notes the id of the W&B run, so that it can be gone on with."""
    if rank_zero_only.rank != 0:
        return
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            write_text(folder / WANDB_ID_FILE, logger.experiment.id + "\n")


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

    The mark of a headline metric goes, which is one of the run's summary besides.
    """
    try:
        return [float(cell.removeprefix("*")) if cell else None for cell in cells]
    except ValueError:
        return cells


def _of_wandb(node: DictConfig, config: DictConfig, folder: Path, resumed: bool) -> dict[str, Any]:
    """What a W&B run is called, where its config leaves that open, and which one is gone on with."""
    if not str(OmegaConf.select(node, "_target_")).endswith("WandbLogger"):
        return {}
    named = {"name": folder.name, "group": config.sweep}
    given = {key: value for key, value in named.items() if OmegaConf.select(node, key) is None and value is not None}
    file = folder / WANDB_ID_FILE
    if resumed and file.is_file():
        given |= {"id": file.read_text(encoding="utf-8").strip(), "resume": "allow"}
    return given
