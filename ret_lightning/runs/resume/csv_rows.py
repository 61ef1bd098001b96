"""CSV log of a resumed run: it keeps all earlier rows, and it is not changed before the run takes over its folder."""

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
    """Callback that stores the metrics of the last step in a checkpoint, because Lightning logs them after it is written."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the row of the current step if it is due and not logged yet."""
        connector = trainer._logger_connector  # there is no public access to metrics before they are logged
        within_step = trainer.training and connector._first_loop_iter is not None
        if not within_step or not connector.should_update_logs or trainer.fit_loop._should_accumulate():
            return
        row = {name: float(value) for name, value in connector.metrics["log"].items()}
        row |= {"epoch": trainer.current_epoch, "step": trainer.fit_loop.epoch_loop._batches_that_stepped}
        checkpoint[KEY] = row


class ResumedRows(ExperimentWriter):
    """Writer of the CSV file of a resumed run. The existing file is unchanged until `release` is called.

    Args:
        log_dir: folder of the CSV file.
        step: optimizer steps of the checkpoint; rows of later steps are dropped and logged again.
        unlogged: metrics of the last step, added if the file does not contain them; None if there are none.
    """

    def __init__(self, log_dir: str, step: int, unlogged: dict[str, Any] | None) -> None:
        super().__init__(log_dir)
        self._held = True
        self.metrics = _read_rows(Path(self.metrics_file_path), step)
        if unlogged is not None and not any(_contains(row, unlogged) for row in self.metrics):
            self.metrics.append(dict(unlogged))

    def _check_log_dir_exists(self) -> None:
        """Do nothing; the method of Lightning deletes the existing file."""

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write the hyperparameters; before `release` they are kept in memory."""
        self.hparams.update(params)
        if not self._held:
            super().log_hparams({})

    def save(self) -> None:
        """Write the rows; before `release` they are kept in memory."""
        if not self._held:
            super().save()

    def release(self) -> None:
        """Replace the file by one with the earlier and the new rows."""
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
    """Let a logger continue its CSV file.

    Args:
        logger: the logger.
        step: optimizer steps of the checkpoint; rows of later steps are dropped and logged again.
        unlogged: metrics of the last step, added if the file does not contain them; None if there are none.

    Returns:
        The writer; call its `release` to replace the existing file.
    """
    rows = ResumedRows(logger.log_dir, step, unlogged)
    logger._experiment = rows
    return rows


def _read_rows(file: Path, step: int) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        rows = [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(opened)]
    # Steps are counted from 0. A line truncated by a kill has no step.
    return [row for row in rows if row.get("step", "").isdigit() and int(row["step"]) < step]


def _contains(row: dict[str, Any], unlogged: dict[str, Any]) -> bool:
    return row["step"] == str(unlogged["step"]) and unlogged.keys() <= row.keys()
