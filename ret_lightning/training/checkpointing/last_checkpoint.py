"""The checkpoint that a run goes on from: the last one, every so many steps and at the end of each epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ret_lightning.errors import ConfigError

# The progress of a validation that Lightning has to run again from its beginning: as if stopped before its first batch.
VALIDATION_AGAIN = {
    "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
    "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
    "is_last_batch": False,
}


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt`, and keeps a `step_<n>.ckpt` now and then.

    Saves between two optimiser steps only, never among the batches of one step: accumulated gradients are not stored.

    Args:
        dirpath: the folder.
        every_n_steps: optimiser steps between two saves within an epoch; None: at the ends of epochs only.
        keep_every_n_steps: every so many optimiser steps one is kept under a name of its own; None: none are.
    """

    def __init__(self, dirpath: str, every_n_steps: int | None = None, keep_every_n_steps: int | None = None) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep_every_n_steps", keep_every_n_steps)):
            if value is not None and value < 1:
                raise ConfigError(
                    f"callbacks.last.{name}={value} must be at least 1, or null for never",
                    code="last-checkpoint-interval",
                    key=f"callbacks.last.{name}",
                    found=value,
                )
        self.folder = Path(dirpath)
        self.every_n_steps = every_n_steps
        self.keep_every_n_steps = keep_every_n_steps
        self._seen = -1
        self._validation_again = False

    @property
    def file(self) -> Path:
        """`last.ckpt`."""
        return self.folder / "last.ckpt"

    def save(self, trainer: Trainer, validation_again: bool = False) -> None:
        """Writes `last.ckpt` now; on all ranks together.

        Args:
            trainer: between two optimiser steps.
            validation_again: a validation is under way; who continues begins with it.
        """
        self._validation_again = validation_again
        trainer.save_checkpoint(self.file, weights_only=False)
        self._validation_again = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes down a validation that is to begin again as one that was stopped before its first batch."""
        if self._validation_again:
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = VALIDATION_AGAIN

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the validation that was stopped, lest the next checkpoint tells of it again."""
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes note of where a resumed run starts."""
        self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves between two steps of an epoch, if a save is due."""
        step = trainer.global_step
        if step == self._seen:  # in the midst of accumulating
            return
        self._seen = step
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return  # the end of the epoch follows, after the validation
        self._keep(trainer)
        if step == trainer.max_steps or (self.every_n_steps and step % self.every_n_steps == 0):
            self.save(trainer)

    def _keep(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if self.keep_every_n_steps and step % self.keep_every_n_steps == 0:
            trainer.save_checkpoint(self.folder / f"step_{step:08d}.ckpt", weights_only=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves at the end of an epoch, after its validation."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:  # not where max_steps cut it short
            self._keep(trainer)
            self.save(trainer)
