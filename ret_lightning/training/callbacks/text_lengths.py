"""Training texts that are longer than the tokenizer's limit."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer

from ret_lightning.data.batch import TrainingBatch
from ret_lightning.evaluation.row_counts import warn_of_cut_texts
from ret_lightning.inputs.truncated_texts import TextCount

FIRST_BATCHES = 100  # after which the line about training is logged, or at the end of a shorter epoch


class TextLengths(Callback):
    """Counts the training texts that the tokenizer cuts, over all ranks, and warns of them once.

    `RetModule` brings it along. Evaluations count theirs themselves (`evaluation.row_counts`).
    """

    def __init__(self) -> None:
        self._training: TextCount | None = TextCount()  # None: is logged
        self._batches = 0

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

    def _log_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counted, self._training = self._training, None
        if counted is not None:
            what = f"training texts of the first {self._batches} batches"
            warn_of_cut_texts(counted, what, pl_module.device)
