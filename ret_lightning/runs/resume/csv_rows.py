"""What a resumed run's CSV file holds: the rows of before, none of them lost, and none before the run has really started."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from ret_lightning.runtime.atomic_files import whole_file

KEY = "unlogged_row"


class UnloggedRow(Callback):
    """Stores in a checkpoint the row of the step that it ends: Lightning logs a step after its checkpoint is written."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the row, where one is due and not logged yet."""
        connector = trainer._logger_connector  # no public view of a step's metrics exists before they are logged
        within_step = trainer.training and connector._first_loop_iter is not None
        if not within_step or not connector.should_update_logs or trainer.fit_loop._should_accumulate():
            return
        row = {name: float(value) for name, value in connector.metrics["log"].items()}
        row |= {"epoch": trainer.current_epoch, "step": trainer.fit_loop.epoch_loop._batches_that_stepped}
        checkpoint[KEY] = row


class ResumedRows(ExperimentWriter):
    """Writes the CSV file of a resumed run; the file of before is unchanged until `release`.

    Args:
        log_dir: its folder.
        step: optimiser steps of the checkpoint that the run resumes from; later rows are left out, they are logged again.
        unlogged: the row of the last of these steps, added where a kill lost it.
    """

    def __init__(self, log_dir: str, step: int, unlogged: dict[str, Any] | None) -> None:
        super().__init__(log_dir)
        self._held = True
        self.metrics = _rows_before(Path(self.metrics_file_path), step)
        if unlogged is not None and not any(_holds(row, unlogged) for row in self.metrics):
            self.metrics.append(dict(unlogged))

    def _check_log_dir_exists(self) -> None:
        """Lightning's would delete the file of before."""

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write the hyperparameters; until `release` they are kept in memory."""
        self.hparams.update(params)
        if not self._held:
            super().log_hparams({})

    def save(self) -> None:
        """Write the rows; until `release` they are kept in memory."""
        if not self._held:
            super().save()

    def release(self) -> None:
        """Replace the file by one with the rows of before and of since."""
        if not self._held:
            return
        self._held = False
        self._record_new_keys()
        with (
            whole_file(self.metrics_file_path) as unfinished,
            unfinished.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(self.metrics)
        self.metrics = []
        if self.hparams:
            super().log_hparams({})


def resume_csv(logger: CSVLogger, step: int, unlogged: dict[str, Any] | None) -> ResumedRows:
    """Have a logger continue its file; see `ResumedRows`."""
    rows = ResumedRows(logger.log_dir, step, unlogged)
    logger._experiment = rows
    return rows


def _rows_before(file: Path, step: int) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        rows = [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(opened)]
    # A row has the number of its step, counted from 0. A line that a kill cut off has none.
    return [row for row in rows if row.get("step", "").isdigit() and int(row["step"]) < step]


def _holds(row: dict[str, Any], unlogged: dict[str, Any]) -> bool:
    return row["step"] == str(unlogged["step"]) and unlogged.keys() <= row.keys()
