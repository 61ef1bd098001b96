"""Callbacks that note what each rank trains with, and the rows that it trains on."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Spy(Callback):
    """Writes the learning rate and the seed of its rank into a file of its own."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the schedule has changed anything."""
        seen = {"lr": trainer.optimizers[0].defaults["lr"], "seed": trainer.datamodule.seed}
        (self.folder / f"seen_by_rank_{trainer.global_rank}.json").write_text(json.dumps(seen))


class Course(Callback):
    """Writes what a run does, one JSON line per event of a rank: the rows of a batch, a validation.

    In the optimiser step that the environment variable STOP_AT names, the first rank sends itself SIGTERM.

    Args:
        folder: of the files, one per rank.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.stop_at = int(os.environ.get("STOP_AT", 0))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Sends the signal, if it is time."""
        if trainer.global_step + 1 == self.stop_at and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes the rows, by their tokens."""
        tokens = zip(batch.queries.input_ids.tolist(), batch.queries.attention_mask.tolist(), strict=True)
        rows = [[token for token, counts in zip(*row, strict=True) if counts] for row in tokens]
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self._note(trainer, {"epoch": trainer.current_epoch, "rows": rows, "learning_rate": rate})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes a validation."""
        if not trainer.sanity_checking:
            self._note(trainer, {"epoch": trainer.current_epoch, "validation": True})

    def _note(self, trainer: Trainer, event: dict[str, Any]) -> None:
        with (self.folder / f"course_{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")


def course(folder: Path) -> list[dict[str, Any]]:
    """The events of all ranks, those of a rank in their order."""
    files = sorted(folder.glob("course_*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def rows_by_epoch(folder: Path) -> dict[int, Counter[tuple[int, ...]]]:
    """How often each row came in each epoch, over all ranks."""
    found: dict[int, Counter[tuple[int, ...]]] = {}
    for event in course(folder):
        found.setdefault(event["epoch"], Counter()).update(map(tuple, event.get("rows", ())))
    return found
