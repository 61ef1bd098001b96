"""How far a run is: a bar on a terminal, a line now and then in a log file."""

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
    """A progress bar where standard error is a terminal; elsewhere a log line at most every `seconds`.

    A bar that is written to a file is one endless line.

    Args:
        refresh_rate: batches between two updates of the bar.
        seconds: between two log lines.
    """

    def __init__(self, refresh_rate: int = 10, seconds: float = 30.0) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=False)
        self.seconds = seconds
        self._told = time.monotonic()
        if not sys.stderr.isatty():
            self.disable()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar, or writes a line when it is time."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._is_time(trainer):
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
        """Likewise, of the rows that an evaluation encodes."""
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if not trainer.sanity_checking:
            self._log_batch(trainer, batch, batch_idx, trainer.num_val_batches[dataloader_idx])

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Likewise."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._log_batch(trainer, batch, batch_idx, trainer.num_test_batches[dataloader_idx])

    def _log_batch(self, trainer: Trainer, batch: EvaluationBatch, batch_idx: int, batches: int | float) -> None:
        if self._is_time(trainer):
            side, at = PLURAL[batch.side], batch_idx + 1
            log.info("encoding %s of %s: batch %d of %d on this rank", side, batch.subset, at, batches)

    def _is_time(self, trainer: Trainer) -> bool:
        """Whether a line is due now, on this rank."""
        if not self.is_disabled or not trainer.is_global_zero or time.monotonic() - self._told < self.seconds:
            return False
        self._told = time.monotonic()
        return True
