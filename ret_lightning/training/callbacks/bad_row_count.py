"""What `data.on_bad_row=skip` left out: counted over the run and over the ranks, shown, logged, and limited."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from lightning import Callback, LightningModule, Trainer

from ret_lightning.data.bad_rows import MIN_ROWS_FOR_FRACTION, Tally
from ret_lightning.data.batch import TrainingBatch
from ret_lightning.data.rank_tallies import reduce_tally

log = logging.getLogger(__name__)


class BadRowCount(Callback):
    """Counts the bad rows of training.

    Logs `data/bad_rows/<kind>`, over all ranks since the beginning of the run, warns of the first few of each kind, and stops
    when more than `data.max_bad_fraction` of the training rows seen are bad: as soon as MIN_ROWS_FOR_FRACTION rows were seen,
    and at the end of each epoch. Evaluations count theirs themselves (`evaluation.row_counts`).

    `RetModule` brings it along; it does nothing where the data module does not skip.
    """

    def __init__(self) -> None:
        self._training = Tally()

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"rows": self._training.rows, "kinds": dict(self._training.kinds)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self._training = Tally(state_dict["rows"], Counter(state_dict["kinds"]))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: TrainingBatch, batch_idx: int
    ) -> None:
        """Counts the batch, before it is trained on: a checkpoint holds the counts of all batches behind it.

        Raises:
            DataError: on all ranks, where too many rows are bad.
        """
        if not _skips(trainer):
            return
        tally = Tally(len(batch) + len(batch.bad_rows))
        for row in batch.bad_rows:
            tally.add(row)
        for row in self._training.update(reduce_tally(tally, pl_module.device)):
            log.warning("left out of training: %s [%s]", row.message, row.kind)
        counts = {f"data/bad_rows/{kind}": float(count) for kind, count in sorted(self._training.kinds.items())}
        # All ranks hold the same numbers, so that nothing is left to be reduced.
        pl_module.log_dict(counts, rank_zero_only=True, batch_size=1)
        if self._training.rows >= MIN_ROWS_FOR_FRACTION:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judges a corpus that is smaller than MIN_ROWS_FOR_FRACTION rows."""
        if _skips(trainer):
            self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if not any(self._training.first.values()):
            return  # none since a resumed run went on
        self._training.check(trainer.datamodule.max_bad_fraction, "training rows")


def _skips(trainer: Trainer) -> bool:
    return getattr(trainer.datamodule, "on_bad_row", "raise") == "skip"
