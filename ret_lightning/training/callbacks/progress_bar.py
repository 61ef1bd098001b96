"""Report the progress of a run: a bar on a terminal, occasional lines in a log file."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from ret_lightning.data.batch import EvaluationBatch
from ret_lightning.data.types import PLURAL

log = logging.getLogger(__name__)


class Progress(TQDMProgressBar):
    """Shows a progress bar if standard error is a terminal; otherwise writes a log line at most every `seconds`.

    Args:
        refresh_rate: number of batches between two updates of the bar.
        seconds: minimum time between two log lines, in seconds.
    """

    def __init__(self, refresh_rate: int = 10, seconds: float = 30.0) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=False)
        self.seconds = seconds
        self._last_line_time = time.monotonic()
        if not sys.stderr.isatty():
            self.disable()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar, or log epoch, batch, step and loss if a line is due."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._claim_line(trainer):
            loss = trainer.callback_metrics.get("train/loss")
            log.info(
                "epoch %d, batch %d of %s, step %d%s",
                trainer.current_epoch + 1,
                batch_idx + 1,
                trainer.num_training_batches,
                trainer.global_step,
                "" if loss is None else f", loss {loss:.3f}",
            )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the bar, or log how many batches of the validation are encoded if a line is due."""
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if not trainer.sanity_checking:
            self._log_encoding(trainer, batch, batch_idx, trainer.num_val_batches[dataloader_idx])

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the bar, or log how many batches of the test are encoded if a line is due."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._log_encoding(trainer, batch, batch_idx, trainer.num_test_batches[dataloader_idx])

    def _log_encoding(self, trainer: Trainer, batch: EvaluationBatch, batch_idx: int, batches: int | float) -> None:
        if self._claim_line(trainer):
            side, number = PLURAL[batch.side], batch_idx + 1
            log.info("encoding %s of %s: batch %d of %d on this rank", side, batch.subset, number, batches)

    def _claim_line(self, trainer: Trainer) -> bool:
        """Return whether a line is due on this rank; if so, restart the interval."""
        if not self.is_disabled or not trainer.is_global_zero or time.monotonic() - self._last_line_time < self.seconds:
            return False
        self._last_line_time = time.monotonic()
        return True
