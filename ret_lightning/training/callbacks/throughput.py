"""Log the number of training pairs per second."""

from __future__ import annotations

import time
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from ret_lightning.data.batch import TrainingBatch


class Throughput(Callback):
    """Logs `train/samples_per_second`: query-passage pairs over all ranks, excluding validations and checkpoints."""

    def __init__(self) -> None:
        self._pairs = 0
        self._since = 0.0

    def _restart(self) -> None:
        self._pairs, self._since = 0, time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock, so that the validation is not counted."""
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TrainingBatch, batch_idx: int
    ) -> None:
        """Log the rate since the last log every `log_every_n_steps`."""
        self._pairs += len(batch) * trainer.world_size
        if trainer.global_step % cast(Any, trainer).log_every_n_steps == 0:
            seconds = time.perf_counter() - self._since
            pl_module.log("train/samples_per_second", self._pairs / seconds, rank_zero_only=True, batch_size=1)
            self._restart()
