"""Write the checkpoint that a run resumes from: at regular steps and at the end of each epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ret_lightning.errors import ConfigError

# Lightning's progress of a validation that was stopped before its first batch, so that it runs from the start.
UNSTARTED_VALIDATION = {
    "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
    "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
    "is_last_batch": False,
}


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt`, and optionally keeps a `step_<n>.ckpt` at regular steps.

    Checkpoints are saved between two optimizer steps only, never between accumulated batches: accumulated gradients are
    not stored.

    Args:
        dirpath: folder of the checkpoints.
        every_n_steps: optimizer steps between two checkpoints within an epoch; None saves at the end of epochs only.
        keep_every_n_steps: optimizer steps between two checkpoints that are kept as `step_<n>.ckpt`; None keeps none.

    Raises:
        ConfigError: if an interval is below 1.
    """

    def __init__(self, dirpath: str, every_n_steps: int | None = None, keep_every_n_steps: int | None = None) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep_every_n_steps", keep_every_n_steps)):
            if value is not None and value < 1:
                raise ConfigError(
                    f"callbacks.last.{name}: expected 1 or more, or null for never, got {value}",
                    code="last-checkpoint-interval",
                    key=f"callbacks.last.{name}",
                    found=value,
                )
        self.folder = Path(dirpath)
        self.every_n_steps = every_n_steps
        self.keep_every_n_steps = keep_every_n_steps
        self._last_step = -1
        self._rerun_validation = False

    @property
    def file(self) -> Path:
        """Path of `last.ckpt`."""
        return self.folder / "last.ckpt"

    def save(self, trainer: Trainer, rerun_validation: bool = False) -> None:
        """Write `last.ckpt` now; all ranks call this together.

        Args:
            trainer: the Trainer, between two optimizer steps.
            rerun_validation: whether a validation is interrupted; a resumed run then starts with it.
        """
        self._rerun_validation = rerun_validation
        trainer.save_checkpoint(self.file, weights_only=False)
        self._rerun_validation = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store an interrupted validation as one that has not started."""
        if self._rerun_validation:
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = UNSTARTED_VALIDATION

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the stored progress of an interrupted validation, so that the next checkpoint does not contain it."""
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the step at which training starts or resumes."""
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save between two optimizer steps if a checkpoint is due."""
        step = trainer.global_step
        if step == self._last_step:  # between accumulated batches
            return
        self._last_step = step
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return  # saved at the end of the epoch, after the validation
        self._keep_if_due(trainer)
        if step == trainer.max_steps or (self.every_n_steps and step % self.every_n_steps == 0):
            self.save(trainer)

    def _keep_if_due(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if self.keep_every_n_steps and step % self.keep_every_n_steps == 0:
            trainer.save_checkpoint(self.folder / f"step_{step:08d}.ckpt", weights_only=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of an epoch, after its validation."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:  # not if max_steps ended the epoch early
            self._keep_if_due(trainer)
            self.save(trainer)
