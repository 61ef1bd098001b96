"""An interrupted and resumed run ends with the same weights as an uninterrupted one, bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ret_lightning.errors import Stopped
from tests.support.interrupted_runs import CutOff, PowerCut, Seen, fit

pytestmark = pytest.mark.slow  # each test trains three times


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


# 24 rows in batches of 5: 5 batches per epoch, the last one with 4 rows.
@pytest.mark.parametrize(
    ("hook", "count", "left", "reading", "workers"),
    [
        ("on_train_batch_start", 9, 7, "indexed", 0),  # in the second epoch, with 8 saved steps
        ("on_train_batch_start", 9, 7, "indexed", 2),
        ("on_train_batch_start", 9, 7, "streaming", 2),
        ("on_train_batch_end", 5, 11, "indexed", 0),  # at the last batch of the first epoch, before its end
        ("on_validation_batch_start", 5, 11, "streaming", 0),
        ("on_train_epoch_start", 2, 10, "indexed", 0),  # after the end of the first epoch
        ("on_train_batch_start", 6, 10, "streaming", 2),
        ("on_train_epoch_end", 2, 6, "indexed", 0),
    ],
)
def test_resume_after_a_power_cut(
    root: Path, tmp_path: Path, hook: str, count: int, left: int, reading: str, workers: int
) -> None:
    options = {"workers": workers, "reading": reading, "every_n_steps": 1}
    _, then = assert_same_end(root, tmp_path, CutOff(hook, count), PowerCut, **options)
    assert len(then.batches) == left


def test_resume_between_accumulated_batches(root: Path, tmp_path: Path) -> None:
    _, then = assert_same_end(
        root, tmp_path, CutOff("on_train_batch_start", 9), PowerCut, every_n_steps=1, accumulate_grad_batches=2
    )
    assert len(then.batches) == 8  # two of the five batches of the second epoch are done


def test_resume_with_validations_within_the_epoch(root: Path, tmp_path: Path) -> None:
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
        ),  # the last batch of the epoch: stops in the validation
        ("on_validation_batch_start", 3, 10, signal.SIGTERM),
        ("on_train_epoch_end", 1, 9, signal.SIGUSR1),  # after one batch of the second epoch
    ],
)
def test_resume_after_a_signal(root: Path, tmp_path: Path, hook: str, count: int, left: int, number: int) -> None:
    before = signal.getsignal(number)
    _, then = assert_same_end(root, tmp_path, CutOff(hook, count, send=number), Stopped)
    assert signal.getsignal(number) == before
    assert len(then.batches) == left
    assert len(then.recalls) == (2 if hook == "on_train_epoch_end" else 3)


@pytest.mark.parametrize("first", [8, 10])  # within an epoch of 5 steps, at the end of one
def test_run_ended_by_max_steps_resumes(root: Path, tmp_path: Path, first: int) -> None:
    whole, seen = fit(root, tmp_path / "whole", max_steps=13)
    fit(root, tmp_path / "parts", max_steps=first)
    parts, then = fit(root, tmp_path / "parts", max_steps=13)
    assert then.batches == seen.batches[first:]
    theirs = whole.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in parts.state_dict().items())


@pytest.mark.parametrize("interval", [1.0, 2])
def test_resume_at_the_end_of_an_epoch_with_max_steps(root: Path, tmp_path: Path, interval: float) -> None:
    """Lightning would end the epoch a second time and skip the next one."""
    options = {"max_steps": 13, "val_check_interval": interval}
    _, then = assert_same_end(root, tmp_path, CutOff("on_train_epoch_start", 2), PowerCut, **options)
    assert len(then.batches) == 8
