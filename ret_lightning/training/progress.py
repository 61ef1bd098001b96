"""How far a run is: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

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
        if self.is_disabled and trainer.is_global_zero and time.monotonic() - self._told >= self.seconds:
            self._told = time.monotonic()
            loss = trainer.callback_metrics.get("train/loss")
            log.info(
                "epoch %d, batch %d of %s, step %d%s",
                trainer.current_epoch + 1,
                batch_idx + 1,
                trainer.num_training_batches,
                trainer.global_step,
                "" if loss is None else f", loss {loss:.3f}",
            )
