"""Resuming with another global batch: every row once per epoch, one validation, a continuous learning rate.

A single process with another batch size simulates another number of ranks; tests/commands/test_resume_ranks.py runs
several ranks.
"""

from __future__ import annotations

import signal
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from ret_lightning.errors import ConfigError, Stopped
from ret_lightning.training.callbacks.rng_states import RANDOM_STATES
from ret_lightning.training.checkpointing.last_checkpoint import LastCheckpoint
from ret_lightning.training.schedule import WarmupCosine
from tests.support.interrupted_runs import CutOff, PowerCut, fit
from tests.support.m2kr_folder import number_questions, write_folder
from tests.support.recording_callbacks import Course, course, rows_by_epoch
from tests.support.tiny_training import make_data

ROWS = 24
EPOCHS = 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return number_questions(write_folder(tmp_path / "m2kr", training_rows=ROWS))


# Parts of a run: the batch size, and what ends the part: a hook, its call number, and optionally a signal to send.
Legs = list[tuple[Any, ...]]
MID_EPOCH: dict[str, Legs] = {
    "to smaller": [(8, "on_train_batch_start", 5), (4,)],
    "to larger": [(4, "on_train_batch_start", 10), (8,)],
    "twice": [(4, "on_train_batch_start", 8), (7, "on_train_batch_start", 2), (3,)],
    "and back": [(4, "on_train_batch_start", 8), (7, "on_train_batch_start", 2), (4,)],
    "by a signal": [(8, "on_train_batch_start", 4, signal.SIGTERM), (4,)],
}
AT_EPOCH_END: dict[str, Legs] = {
    "in the last validation": [(8, "on_validation_batch_start", 5, signal.SIGTERM), (4,)],
    "after the epoch": [(4, "on_train_epoch_start", 2), (8,)],
}


def train(root: Path, folder: Path, legs: Legs, **options: Any) -> None:
    options = {"schedule": WarmupCosine(warmup_steps=1), "every_n_steps": 1, "max_epochs": EPOCHS, **options}
    folder.mkdir()
    for batch_size, *cut in legs[:-1]:
        with pytest.raises((PowerCut, Stopped)):
            fit(root, folder, Course(str(folder)), CutOff(*cut), batch_size=batch_size, **options)
    fit(root, folder, Course(str(folder)), batch_size=legs[-1][0], **options)


def validations(folder: Path) -> Counter[int]:
    return Counter(event["epoch"] for event in course(folder) if "validation" in event)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reading", "name"),
    [
        *(("indexed", name) for name in (*MID_EPOCH, *AT_EPOCH_END)),
        *(("streaming", name) for name in ("twice", "by a signal", *AT_EPOCH_END)),
    ],
)
def test_every_row_and_validation_occurs_once(root: Path, tmp_path: Path, reading: str, name: str) -> None:
    legs = (MID_EPOCH | AT_EPOCH_END)[name]
    options = {} if reading == "indexed" else {"schedule": WarmupCosine(horizon_steps=20)}
    train(root, tmp_path / "run", legs, reading=reading, **options)
    found = rows_by_epoch(tmp_path / "run")
    assert len(found[0]) == ROWS
    assert found == {epoch: Counter(dict.fromkeys(found[0], 1)) for epoch in range(EPOCHS)}
    assert validations(tmp_path / "run") == dict.fromkeys(range(EPOCHS), 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "legs", "expected"),
    [
        ({"accumulate_grad_batches": 2}, [(4, "on_train_batch_start", 3, signal.SIGTERM), (8,)], {0: 1, 1: 1}),
        ({"max_steps": 9}, AT_EPOCH_END["after the epoch"], {0: 1, 1: 1}),
        ({"val_check_interval": 2}, [(4, "on_train_batch_start", 4), (8,)], {0: 2, 1: 1}),
        ({"val_check_interval": 0.5}, [(4, "on_validation_batch_start", 5, signal.SIGTERM), (8,)], {0: 2, 1: 3}),
        ({"check_val_every_n_epoch": 2}, MID_EPOCH["to smaller"], {1: 1}),
        ({"workers": 1}, [(4, "on_train_batch_start", 4), (8,)], {0: 1, 1: 1}),
    ],
    ids=["accumulation", "max_steps", "interval", "interval as a share", "every second epoch", "workers"],
)
def test_resume_with_other_intervals_and_steps(root: Path, tmp_path: Path, options, legs, expected) -> None:
    train(root, tmp_path / "run", legs, **options)
    found = rows_by_epoch(tmp_path / "run")
    assert found == {epoch: Counter(dict.fromkeys(found[0], 1)) for epoch in range(EPOCHS)}
    assert len(found[0]) == ROWS
    assert validations(tmp_path / "run") == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "legs", "rows"),
    [
        (3, [(4, "on_train_batch_start", 5), (8,)], {0: 12, 1: 20}),
        (0.5, [(6, "on_train_batch_start", 2), (3,)], {0: 12, 1: 12}),
        (0.5, [(4, "on_train_batch_start", 3), (8,)], {0: 8, 1: 8}),  # no batch of the first epoch remains
    ],
)
def test_resume_of_limited_epochs(root: Path, tmp_path: Path, limit, legs, rows) -> None:
    train(root, tmp_path / "run", legs, limit_train_batches=limit)
    found = rows_by_epoch(tmp_path / "run")
    assert {epoch: counts.total() for epoch, counts in found.items()} == rows
    assert all(set(counts.values()) == {1} for counts in found.values())
    assert validations(tmp_path / "run") == dict.fromkeys(range(EPOCHS), 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "legs", [[(8,)], [(8, "on_train_batch_start", 3), (8,)], AT_EPOCH_END["in the last validation"]]
)
def test_stream_shorter_than_limit_is_validated(root: Path, tmp_path: Path, caplog, legs) -> None:
    options = {"reading": "streaming", "schedule": WarmupCosine(horizon_steps=20), "limit_train_batches": 50}
    train(root, tmp_path / "run", legs, **options)
    assert validations(tmp_path / "run") == dict.fromkeys(range(EPOCHS), 1)
    assert [set(counts.values()) for counts in rows_by_epoch(tmp_path / "run").values()] == [{1}] * EPOCHS
    assert any("has only 3 batches" in record.message for record in caplog.records)


@pytest.mark.slow
def test_learning_rate_is_continuous(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(root, tmp_path / "run", MID_EPOCH["and back"])
    rates = [event["learning_rate"] for event in course(tmp_path / "run") if "rows" in event]
    assert rates == sorted(rates, reverse=True)
    assert max(before - after for before, after in pairwise(rates)) < 0.002  # of 0.01
    assert rates[-1] < 1e-4
    lines = [record.message for record in caplog.records if record.message.startswith("resumed with a global batch")]
    assert lines == [
        "resumed with a global batch of 7 rows (1 rank x 7), previously 4 rows (1 rank x 4); epoch 2 continues with its "
        "remaining rows",
        "resumed with a global batch of 4 rows (1 rank x 4), previously 7 rows (1 rank x 7); epoch 2 continues with its "
        "remaining rows",
    ]


@pytest.mark.slow
def test_second_resume_is_bitwise_equal(root: Path, tmp_path: Path) -> None:
    """A run whose batch size changed is resumed again, bit for bit."""
    weights = {}
    for name, again in (("once", []), ("twice", [(4, "on_train_batch_start", 3)])):
        train(root, tmp_path / name, [(7, "on_train_batch_start", 6), *again, (4,)])
        weights[name] = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, weights["once"][name]) for name, tensor in weights["twice"].items())


@pytest.mark.slow
def test_interval_longer_than_resumed_epoch_is_refused(root: Path, tmp_path: Path) -> None:
    """Epochs have 3 batches after the change, and 7 when it happens."""
    legs = [(4, "on_train_batch_start", 6), (8,)]
    with pytest.raises(ConfigError) as error:
        train(root, tmp_path / "run", legs, val_check_interval=5)
    assert (error.value.code, error.value.found, error.value.allowed) == ("validation-interval-too-long", 5, 3)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, 6),
        ({"limit_train_batches": 2}, 2),
        ({"limit_train_batches": 0.5}, 3),
        ({"limit_train_batches": 2, "reading": "streaming"}, 2),
    ],
)
def test_interval_longer_than_epoch_is_refused(
    root: Path, tmp_path: Path, options: dict[str, Any], allowed: int
) -> None:
    with pytest.raises(ConfigError) as error:
        fit(root, tmp_path / "run", batch_size=4, val_check_interval=7, **options)
    assert (error.value.code, error.value.allowed) == ("validation-interval-too-long", allowed)


class EarlierVersion(Callback):
    """Writes positions as versions before `Position` did, with the random states of two ranks."""

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        state = checkpoint["M2KRDataModule"]
        checkpoint["M2KRDataModule"] = {"epoch": state["epoch"], "batch": state["spans"][-1][2]}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_position_of_earlier_version_is_converted(root: Path, tmp_path: Path, ranks: int, caplog) -> None:
    """The number of ranks is taken from the random states."""
    folder = tmp_path / "run"
    folder.mkdir()
    options = {"every_n_steps": 1, "batch_size": 4, "schedule": WarmupCosine(warmup_steps=1)}
    with pytest.raises(PowerCut):
        fit(root, folder, EarlierVersion(), CutOff("on_train_batch_start", 3), **options)
    file = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint["M2KRDataModule"] == {"epoch": 0, "batch": 2}
    checkpoint[RANDOM_STATES] *= ranks
    torch.save(checkpoint, file)
    fit(root, folder, Course(str(folder)), max_epochs=1, **options)
    assert rows_by_epoch(folder)[0].total() == ROWS - 2 * 4 * ranks
    assert ("a global batch of 4 rows (1 rank x 4), previously 8 rows (2 ranks x 4)" in caplog.text) == (ranks == 2)


@pytest.mark.slow
def test_resume_from_checkpoint_kept_at_epoch_end(root: Path, tmp_path: Path) -> None:
    """`step_<n>.ckpt` at the last step of an epoch is written after the validation, so that a resumed run skips it."""
    folder = tmp_path / "run"
    folder.mkdir()
    keep = LastCheckpoint(str(folder / "kept"), keep_every_n_steps=3)
    fit(root, folder, keep, batch_size=8, max_epochs=1)
    (folder / "checkpoints" / "last.ckpt").unlink()
    (folder / "kept" / "step_00000003.ckpt").rename(folder / "checkpoints" / "step_00000003.ckpt")
    fit(root, folder, Course(str(folder)), batch_size=8, max_epochs=2)
    assert {epoch: counts.total() for epoch, counts in rows_by_epoch(folder).items()} == {1: ROWS}
    assert validations(folder) == {1: 1}


def test_position_uses_batch_size_of_data_module(root: Path) -> None:
    data = make_data(root, batch_size=4)
    data.setup("fit")
    data.load_state_dict({"epoch": 1, "spans": [[2, 4, 2]]})
    batches = data.train_dataloader().batch_sampler
    assert (batches.epoch, len(batches), sum(map(len, batches))) == (1, 2 + 2, ROWS - 16)
