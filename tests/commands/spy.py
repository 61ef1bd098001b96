"""A callback that notes what each rank trains with."""

from __future__ import annotations

import json
from pathlib import Path

from lightning import Callback, LightningModule, Trainer


class Spy(Callback):
    """Writes the learning rate and the seed of its rank into a file of its own."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the schedule has changed anything."""
        seen = {"lr": trainer.optimizers[0].defaults["lr"], "seed": trainer.datamodule.seed}
        (self.folder / f"seen_by_rank_{trainer.global_rank}.json").write_text(json.dumps(seen))
