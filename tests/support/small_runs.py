"""Options of a training run of a few seconds, for tests that run commands in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ret_lightning.commands import train
from tests.support import processes
from tests.support.paths import ROOT

SMALL = [
    "model.num_tokens=4",
    "model.hidden_size=64",
    "model.num_heads=2",
    "model.output_size=16",
    "backbone.text.num_hidden_layers=2",
    "backbone.vision.num_hidden_layers=2",
    "backbone.text.hidden_size=32",
    "backbone.text.intermediate_size=64",
    "backbone.vision.patch_size=20",
]
QUIET = [
    "callbacks.examples=null",
    "callbacks.gate_maps=null",
    "callbacks.loss_curve=null",
    "callbacks.recall_curves=null",
    "callbacks.evaluation_curves=null",
    "callbacks.summary=null",
    "trainer.enable_progress_bar=false",
]


class Trained(NamedTuple):
    """Folders: the corpus, the run, the published layout."""

    root: Path
    run: Path
    exported: Path


def sweep(root: Path, folder: Path, *options: str, **more: dict) -> subprocess.CompletedProcess[str]:
    short = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "data.subsets=[okvqa]"]
    return ret_train("-m", *m2kr(root, *short), *options, cwd=folder, **more)


def written(folder: Path) -> dict[str, int]:
    """Of each run of a sweep, when its metrics were written."""
    return {file.parent.name: file.stat().st_mtime_ns for file in folder.glob("*/metrics.json")}


def evaluate(trained: Trained, *options: str, cwd: Path):
    return command("evaluate", f"data.root={trained.root}", "data.num_workers=0", *options, cwd=cwd)


def contents(folder: Path) -> dict[str, bytes]:
    files = [folder / "metrics.json", folder / "intervals.json", *sorted((folder / "rankings").iterdir())]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def command(name: str, *options: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return processes.run(processes.module(f"ret_lightning.commands.{name}", *options), cwd, one_thread())


def one_thread() -> dict[str, str]:
    """The environment of a process whose numbers are compared to the last bit, with another number of ranks, say."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def ret_train(
    *options: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return processes.run(
        processes.module("ret_lightning.commands.train", *options),
        cwd,
        {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
    )


def m2kr(root: Path, *options: str) -> list[str]:
    return [
        "data=m2kr", f"data.root={root}", "data.num_workers=0", "data.batch_size=8", "logger=csv", "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1", "scheduler.warmup_steps=1", *SMALL, *options,
    ]  # fmt: skip


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
