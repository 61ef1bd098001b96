"""Texts that are longer than the tokenizer's limit: one line for training, and one for each split that is evaluated."""

from __future__ import annotations

import logging

import torch
from lightning import Callback, LightningModule, Trainer

from ret_lightning.data.batch import EvaluationBatch, TrainingBatch
from ret_lightning.distributed.collectives import gather_sizes
from ret_lightning.inputs.truncated_texts import TextCount

log = logging.getLogger(__name__)

FIRST_BATCHES = 100  # after which the line about training is logged, or at the end of a shorter epoch


class TextLengths(Callback):
    """Counts the texts that the tokenizer cuts, over all ranks, and warns once of those of each kind.

    `RetModule` brings it along.
    """

    def __init__(self) -> None:
        self._training: TextCount | None = TextCount()  # None: is logged
        self._batches = 0
        self._evaluated = TextCount()
        self._logged: set[str] = set()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: TrainingBatch, batch_idx: int
    ) -> None:
        """Counts the batch."""
        if self._training is None:
            return
        self._training.add(batch.texts)
        self._batches += 1
        if self._batches == FIRST_BATCHES:
            self._log_training(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the line about training, if the epoch is short."""
        self._log_training(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a count."""
        self._evaluated = TextCount()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: EvaluationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the batch, unless it only repeats a row of another rank."""
        if not getattr(trainer.datamodule, "idle", {}).get(_split(trainer)):
            self._evaluated.add(batch.texts)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the line about the split."""
        if not trainer.sanity_checking and _split(trainer) not in self._logged:
            self._logged.add(_split(trainer))
            self._log(trainer, pl_module, f"{_split(trainer)} texts", self._evaluated)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _log_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counted, self._training = self._training, None
        if counted is not None:
            self._log(trainer, pl_module, f"training texts of the first {self._batches} batches", counted)

    def _log(self, trainer: Trainer, pl_module: LightningModule, what: str, count: TextCount) -> None:
        sizes = torch.tensor(gather_sizes((count.texts, count.cut), pl_module.device)).sum(dim=0).tolist()
        if trainer.is_global_zero:
            TextCount(*sizes, count.limit).warn(log, what)


def _split(trainer: Trainer) -> str:
    return "test" if trainer.testing else "val"
