"""Count the training texts that exceed the tokenizer's limit."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer

from ret_lightning.data.batch import TrainingBatch
from ret_lightning.evaluation.row_counts import warn_about_truncated_texts
from ret_lightning.inputs.truncated_texts import TextCount

FIRST_BATCHES = 100  # the warning covers these batches, or a shorter epoch


class TextLengths(Callback):
    """Counts the training texts that the tokenizer truncates, over all ranks, and warns about them once.

    `RetModule` adds this callback. Truncated texts of an evaluation are counted by
    `ret_lightning.evaluation.row_counts`.
    """

    def __init__(self) -> None:
        self._training: TextCount | None = TextCount()  # None: already reported
        self._batches = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: TrainingBatch, batch_idx: int
    ) -> None:
        """Count the truncated texts of the batch; warn after FIRST_BATCHES batches."""
        if self._training is None:
            return
        self._training.add(batch.texts)
        self._batches += 1
        if self._batches == FIRST_BATCHES:
            self._report(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn at the end of an epoch with fewer than FIRST_BATCHES batches."""
        self._report(trainer, pl_module)

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counted, self._training = self._training, None
        if counted is not None:
            description = f"training texts of the first {self._batches} batches"
            warn_about_truncated_texts(counted, description, pl_module.device)
