"""Count, log and limit the rows that `data.on_bad_row=skip` leaves out of training."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from ret_lightning.data.bad_rows import MIN_ROWS_FOR_FRACTION, Tally
from ret_lightning.data.batch import TrainingBatch
from ret_lightning.data.rank_tallies import reduce_tally

log = logging.getLogger(__name__)


class BadRowCount(Callback):
    """Counts the bad rows of training.

    Logs `data/bad_rows/<kind>`, the count over all ranks since the start of the run, and warns about the first few rows
    of each kind. Stops the run if more than `data.max_bad_fraction` of the training rows seen so far are bad. The
    fraction is checked after every batch once MIN_ROWS_FOR_FRACTION rows have been seen, and at the end of each epoch.

    `RetModule` adds this callback. It does nothing if the data module does not skip bad rows. Bad rows of an evaluation
    are counted by `ret_lightning.evaluation.row_counts`.
    """

    def __init__(self) -> None:
        self._training = Tally()

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"rows": self._training.rows, "kinds": dict(self._training.kinds)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts."""
        self._training = Tally(state_dict["rows"], Counter(state_dict["kinds"]))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: TrainingBatch, batch_idx: int
    ) -> None:
        """Count the bad rows of the batch and check their fraction.

        Counting happens before the batch is trained on, so that a checkpoint contains the counts of all batches before
        it.

        Raises:
            DataError: on all ranks, if too many rows are bad.
        """
        if not _skips_bad_rows(trainer):
            return
        tally = Tally(len(batch) + len(batch.bad_rows))
        for row in batch.bad_rows:
            tally.add(row)
        for row in self._training.update(reduce_tally(tally, pl_module.device)):
            log.warning("skipped training row: %s [%s]", row.message, row.kind)
        counts = {f"data/bad_rows/{kind}": float(count) for kind, count in sorted(self._training.kinds.items())}
        # The counts are already summed over the ranks: no reduction is needed.
        pl_module.log_dict(counts, rank_zero_only=True, batch_size=1)
        if self._training.rows >= MIN_ROWS_FOR_FRACTION:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the fraction of bad rows, also for a corpus with fewer than MIN_ROWS_FOR_FRACTION rows.

        Raises:
            DataError: on all ranks, if too many rows are bad.
        """
        if _skips_bad_rows(trainer):
            self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if not any(self._training.first.values()):
            return  # no bad row since the run was resumed
        self._training.check(cast(Any, trainer).datamodule.max_bad_fraction, "training rows")


def _skips_bad_rows(trainer: Trainer) -> bool:
    return getattr(cast(Any, trainer).datamodule, "on_bad_row", "raise") == "skip"
