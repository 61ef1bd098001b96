"""Options of a training run of a few seconds, for tests that run commands in this process."""

from __future__ import annotations

import sys
from pathlib import Path

from ret_lightning.commands import train
from tests.commands.test_train import SMALL

QUIET = [
    "callbacks.examples=null",
    "callbacks.gate_maps=null",
    "callbacks.recall_curves=null",
    "callbacks.evaluation_curves=null",
    "callbacks.summary=null",
    "trainer.enable_progress_bar=false",
]


def small_run(root: Path, folder: Path, *options: str) -> list[str]:
    """40 rows in batches of 8 are 5 steps per epoch."""
    return [
        "data=m2kr", f"data.root={root}", "data.num_workers=0", "data.batch_size=8", "logger=csv",
        "trainer.log_every_n_steps=1", "scheduler.warmup_steps=1", "optimizer.lr=0.003", *QUIET, *SMALL,
        f"output_dir={folder}", *options,
    ]  # fmt: skip


def finished_run(root: Path, folder: Path, *options: str) -> Path:
    """Train in this process, for a fixture of a module whose tests copy the run, and return its folder."""
    before, sys.argv = sys.argv, ["ret-train", *small_run(root, folder, *options)]
    try:
        train.main()
    finally:
        sys.argv = before
    return folder
