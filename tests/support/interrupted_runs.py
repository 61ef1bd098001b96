"""Runs that are cut off at a chosen place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything

from ret_lightning import RetModule, RetrievalEvaluation
from ret_lightning.inputs import Augmentation
from ret_lightning.retrieval import ExactIndex
from ret_lightning.runs.resume.same_run import last_whole_checkpoint
from ret_lightning.training.callbacks.rng_states import RandomStates
from ret_lightning.training.callbacks.stop_on_signal import StopOnSignal
from ret_lightning.training.checkpointing.checkpoint_io import RunCheckpointIO
from ret_lightning.training.checkpointing.last_checkpoint import LastCheckpoint
from ret_lightning.training.schedule import WarmupCosine
from tests.support.tiny_training import make_data, make_module

EPOCHS = 3
SCHEDULE = WarmupCosine(warmup_steps=2, horizon_steps=15)  # streaming does not know its end


class PowerCut(Exception):
    pass


class CutOff(Callback):
    """Ends the process, as it were, at the n-th time that a hook is called."""

    def __init__(self, hook: str, count: int, send: int | None = None) -> None:
        self.left = count
        self.send = send
        setattr(self, hook, self._strike)

    def _strike(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left == 0:
            if self.send is None:
                raise PowerCut
            os.kill(os.getpid(), self.send)


class Seen(Callback):
    """The labels of every training batch, and the recall after every validation."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.recalls: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batches.append(batch.labels.tolist())

    def on_validation_end(self, trainer, pl_module) -> None:
        self.recalls.append(float(trainer.callback_metrics["val/mean/recall@1"]))


def dropping_module() -> RetModule:
    module = make_module()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.3
    return module


def fit(
    root: Path,
    folder: Path,
    *callbacks: Callback,
    workers: int = 0,
    reading: str = "indexed",
    every_n_steps: int | None = None,
    batch_size: int = 5,
    schedule: WarmupCosine = SCHEDULE,
    **options: Any,
) -> tuple[RetModule, Seen]:
    seed_everything(1, verbose=False)
    module, seen = dropping_module(), Seen()
    module.schedule = schedule
    augmentation = Augmentation(rotation=5.0)
    data = make_data(root, num_workers=workers, batch_size=batch_size, augmentation=augmentation, reading=reading)
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "max_epochs": EPOCHS,
            "gradient_clip_val": 1.0,
            **options,
        },
        callbacks=[
            RetrievalEvaluation(ExactIndex(), [1, 5], ranked=10),
            RandomStates(),
            seen,
            *callbacks,
            StopOnSignal(),
            LastCheckpoint(str(folder / "checkpoints"), every_n_steps=every_n_steps),
        ],
        plugins=[RunCheckpointIO()],
    )
    checkpoint = last_whole_checkpoint(folder)
    torch.rand(7 if checkpoint else 0)  # a resumed run may draw something else while it is set up
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return module, seen
