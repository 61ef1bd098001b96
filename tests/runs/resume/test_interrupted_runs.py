"""A run that is cut off and resumed ends as an undisturbed one, bit for bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer, seed_everything

from ret_lightning import RetModule, RetrievalEvaluation
from ret_lightning.errors import Stopped
from ret_lightning.inputs import Augmentation
from ret_lightning.retrieval import ExactIndex
from ret_lightning.runs.resume.same_run import last_whole_checkpoint
from ret_lightning.training.callbacks.rng_states import RandomStates
from ret_lightning.training.callbacks.stop_on_signal import StopOnSignal
from ret_lightning.training.checkpointing.checkpoint_io import RunCheckpointIO
from ret_lightning.training.checkpointing.last_checkpoint import LastCheckpoint
from ret_lightning.training.schedule import WarmupCosine
from tests.training.conftest import make_data, make_module

pytestmark = pytest.mark.slow  # each trains three times

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


def assert_same_end(
    root: Path, tmp_path: Path, cut: CutOff, error: type[Exception], **options: Any
) -> tuple[Seen, Seen]:
    undisturbed, seen = fit(root, tmp_path / "undisturbed", **options)
    with pytest.raises(error):
        fit(root, tmp_path / "cut", cut, **options)
    resumed, seen_then = fit(root, tmp_path / "cut", **options)
    theirs = undisturbed.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in resumed.state_dict().items())
    assert seen_then.batches == seen.batches[len(seen.batches) - len(seen_then.batches) :]
    assert seen_then.recalls == seen.recalls[len(seen.recalls) - len(seen_then.recalls) :]
    return seen, seen_then


# 24 rows in batches of 5: 5 batches an epoch, the last one of 4.
@pytest.mark.parametrize(
    ("hook", "count", "left", "reading", "workers"),
    [
        ("on_train_batch_start", 9, 7, "indexed", 0),  # in the second epoch, 8 steps are done and saved
        ("on_train_batch_start", 9, 7, "indexed", 2),
        ("on_train_batch_start", 9, 7, "streaming", 2),
        ("on_train_batch_end", 5, 11, "indexed", 0),  # at the last batch of the first, whose end is not reached
        ("on_validation_batch_start", 5, 11, "streaming", 0),
        ("on_train_epoch_start", 2, 10, "indexed", 0),  # right after the end of the first
        ("on_train_batch_start", 6, 10, "streaming", 2),
        ("on_train_epoch_end", 2, 6, "indexed", 0),
    ],
)
def test_after_a_power_cut(
    root: Path, tmp_path: Path, hook: str, count: int, left: int, reading: str, workers: int
) -> None:
    options = {"workers": workers, "reading": reading, "every_n_steps": 1}
    _, then = assert_same_end(root, tmp_path, CutOff(hook, count), PowerCut, **options)
    assert len(then.batches) == left


def test_between_accumulated_batches(root: Path, tmp_path: Path) -> None:
    _, then = assert_same_end(
        root, tmp_path, CutOff("on_train_batch_start", 9), PowerCut, every_n_steps=1, accumulate_grad_batches=2
    )
    assert len(then.batches) == 8  # two of the second epoch's five are behind it


def test_with_validations_within_the_epoch(root: Path, tmp_path: Path) -> None:
    assert_same_end(root, tmp_path, CutOff("on_train_batch_start", 9), PowerCut, every_n_steps=1, val_check_interval=2)


@pytest.mark.parametrize(
    ("hook", "count", "left", "number"),
    [
        ("on_train_batch_start", 2, 13, signal.SIGTERM),
        (
            "on_train_batch_start",
            5,
            10,
            signal.SIGUSR1,
        ),  # the last batch of the epoch: stops in the validation that follows
        ("on_validation_batch_start", 3, 10, signal.SIGTERM),
        ("on_train_epoch_end", 1, 9, signal.SIGUSR1),  # after one batch of the second epoch
    ],
)
def test_after_a_signal(root: Path, tmp_path: Path, hook: str, count: int, left: int, number: int) -> None:
    before = signal.getsignal(number)
    _, then = assert_same_end(root, tmp_path, CutOff(hook, count, send=number), Stopped)
    assert signal.getsignal(number) == before
    assert len(then.batches) == left
    assert len(then.recalls) == (2 if hook == "on_train_epoch_end" else 3)


@pytest.mark.parametrize("first", [8, 10])  # within an epoch of 5 steps, at the end of one
def test_run_that_max_steps_ended_continues(root: Path, tmp_path: Path, first: int) -> None:
    whole, seen = fit(root, tmp_path / "whole", max_steps=13)
    fit(root, tmp_path / "parts", max_steps=first)
    parts, then = fit(root, tmp_path / "parts", max_steps=13)
    assert then.batches == seen.batches[first:]
    theirs = whole.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in parts.state_dict().items())


@pytest.mark.parametrize("interval", [1.0, 2])
def test_end_of_an_epoch_with_max_steps(root: Path, tmp_path: Path, interval: float) -> None:
    """Lightning by itself ends the epoch a second time and skips the next one."""
    options = {"max_steps": 13, "val_check_interval": interval}
    _, then = assert_same_end(root, tmp_path, CutOff("on_train_epoch_start", 2), PowerCut, **options)
    assert len(then.batches) == 8
