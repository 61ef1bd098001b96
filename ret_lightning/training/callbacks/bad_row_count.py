"""What `data.on_bad_row=skip` left out: counted over the run and over the ranks, shown, logged, and limited."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from ret_lightning.data.bad_rows import JUDGED_FROM, Tally
from ret_lightning.data.batch import EvaluationBatch, TrainingBatch
from ret_lightning.distributed.collectives import world_size

log = logging.getLogger(__name__)


class BadRowCount(Callback):
    """Counts the bad rows of training, and the images that evaluation could not read.

    Logs `data/bad_rows/<kind>`, over all ranks since the beginning of the run, warns of the first few of each kind, and stops
    when more than `data.max_bad_fraction` of the training rows seen are bad: as soon as JUDGED_FROM rows were seen, and at
    the end of each epoch. Of an evaluation file the images that could not be read are told once, at the end of the first
    evaluation, which stops if they are more than that share of its rows.

    `RetModule` brings it along; it does nothing where the data module does not skip.
    """

    def __init__(self) -> None:
        self._training = Tally()
        self._evaluation: dict[int, Tally] = {}  # by loader
        self._told: set[str] = set()

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
        for row in self._training.update(_over_ranks(tally, pl_module.device)):
            log.warning("left out of training: %s [%s]", row.message, row.kind)
        counts = {f"data/bad_rows/{kind}": float(count) for kind, count in sorted(self._training.kinds.items())}
        # All ranks hold the same numbers, so that nothing is left to be reduced.
        pl_module.log_dict(counts, rank_zero_only=True, batch_size=1)
        if self._training.rows >= JUDGED_FROM:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judges a corpus that is smaller than JUDGED_FROM rows."""
        if _skips(trainer):
            self._check(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EvaluationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the images that could not be read."""
        if getattr(trainer.datamodule, "idle", {}).get("test" if trainer.testing else "val"):
            return  # a row of another rank, or one that is encoded already
        tally = self._evaluation.setdefault(dataloader_idx, Tally())
        tally.rows += len(batch)
        for row in batch.bad_images:
            tally.add(row)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells of them, once a file. Raises DataError on all ranks where a file has too many."""
        found, self._evaluation = self._evaluation, {}
        if not _skips(trainer):
            return
        split = "test" if trainer.testing else "val"
        for number, subset in enumerate(trainer.datamodule.evaluation_subsets(split)):
            for loader, side in ((2 * number, "passages"), (2 * number + 1, "queries")):
                tally, own = Tally(), found.get(loader, Tally())
                if before := getattr(trainer.datamodule, "bad_before", None):
                    own.update(before(loader))
                tally.update(_over_ranks(own, pl_module.device))
                if before := getattr(trainer.datamodule, "rows_before", None):
                    tally.rows += before(loader)  # the share is of the whole file, not of what an interruption left
                name = f"{subset.name}: the images of the {split} {side}"
                if not tally.bad or name in self._told:
                    continue
                self._told.add(name)
                tally.check(trainer.datamodule.max_bad_fraction, name)
                log.warning(
                    "%s: %s cannot be read, and these rows go without; the first: %s",
                    name, tally, next(iter(tally.first.values()))[0].message,
                )  # fmt: skip

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_validation_epoch_end`."""
        self.on_validation_epoch_end(trainer, pl_module)

    def _check(self, trainer: Trainer) -> None:
        if not any(self._training.first.values()):
            return  # none since a resumed run went on
        self._training.check(trainer.datamodule.max_bad_fraction, "training rows")


def _skips(trainer: Trainer) -> bool:
    return getattr(trainer.datamodule, "on_bad_row", "raise") == "skip"


def _over_ranks(tally: Tally, device: torch.device) -> Tally:
    """The tallies of all ranks as one."""
    if world_size() == 1:
        return tally
    counts = torch.tensor([tally.rows, tally.bad], device=device)
    torch.distributed.all_reduce(counts)
    rows, bad = counts.tolist()
    if bad == 0:  # nearly always, so that only two numbers are exchanged
        return Tally(rows)
    parts: list[Any] = [None] * world_size()
    # Messages are made where the rows were read: on another machine the file may stand elsewhere.
    told = {kind: [row._replace(text=row.message) for row in rows] for kind, rows in tally.first.items()}
    torch.distributed.all_gather_object(parts, Tally(tally.rows, tally.kinds, told))
    whole = Tally()
    for part in parts:
        whole.update(part)
    return whole
