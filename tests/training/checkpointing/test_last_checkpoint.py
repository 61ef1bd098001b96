"""`last.ckpt`: when it is written, and how an interrupted validation is stored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning import Trainer

from ret_lightning.errors import ConfigError
from ret_lightning.training.checkpointing.last_checkpoint import UNSTARTED_VALIDATION, LastCheckpoint


class RecordingTrainer:
    """Records the names and steps of saved checkpoints."""

    def __init__(self, batches: int, max_steps: int = -1) -> None:
        progress = SimpleNamespace(is_last_batch=False)
        self.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        self.batches, self.max_steps, self.global_step = batches, max_steps, 0
        self.saved: list[tuple[str, int]] = []

    def save_checkpoint(self, file: Path, weights_only: bool) -> None:
        assert not weights_only
        self.saved.append((file.name, self.global_step))

    def run_epoch(self, callback: LastCheckpoint, accumulate: int = 1) -> list[tuple[str, int]]:
        """Run the callback's hooks over an epoch, up to `max_steps`."""
        for batch in range(1, self.batches + 1):
            is_last = batch == self.batches
            self.fit_loop.epoch_loop.batch_progress.is_last_batch = is_last
            self.global_step += batch % accumulate == 0 or is_last
            callback.on_train_batch_end(self, None, None, None, batch - 1)
            if self.global_step == self.max_steps:
                break
        callback.on_train_epoch_end(self, None)
        return self.saved


def test_saves_at_intervals_and_after_the_epoch(tmp_path: Path) -> None:
    assert RecordingTrainer(7).run_epoch(LastCheckpoint(str(tmp_path), every_n_steps=3)) == [
        ("last.ckpt", 3),
        ("last.ckpt", 6),
        ("last.ckpt", 7),
    ]
    assert RecordingTrainer(7).run_epoch(LastCheckpoint(str(tmp_path))) == [("last.ckpt", 7)]


def test_saves_between_steps_only(tmp_path: Path) -> None:
    """With two accumulated batches per step: one save per step, none between its batches."""
    callback = LastCheckpoint(str(tmp_path), every_n_steps=1)
    trainer = RecordingTrainer(7)
    callback.on_train_start(trainer, None)
    assert trainer.run_epoch(callback, accumulate=2) == [("last.ckpt", step) for step in (1, 2, 3, 4)]


def test_last_step_is_saved_within_an_epoch(tmp_path: Path) -> None:
    assert RecordingTrainer(7, max_steps=5).run_epoch(LastCheckpoint(str(tmp_path))) == [("last.ckpt", 5)]


def test_kept_checkpoints_have_distinct_names(tmp_path: Path) -> None:
    saved = RecordingTrainer(6).run_epoch(LastCheckpoint(str(tmp_path), keep_every_n_steps=2))
    assert saved == [("step_00000002.ckpt", 2), ("step_00000004.ckpt", 4), ("step_00000006.ckpt", 6), ("last.ckpt", 6)]


@pytest.mark.parametrize("name", ["every_n_steps", "keep_every_n_steps"])
def test_intervals_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LastCheckpoint("checkpoints", **{name: 0})
    assert (caught.value.code, caught.value.key) == ("last-checkpoint-interval", f"callbacks.last.{name}")


def test_stopped_validation_is_stored_as_not_started(tmp_path: Path) -> None:
    callback, stored = LastCheckpoint(str(tmp_path)), []

    def save_checkpoint(file: Path, weights_only: bool) -> None:
        checkpoint = {"loops": {"fit_loop": {"epoch_loop.val_loop.batch_progress": "under way"}}}
        callback.on_save_checkpoint(None, None, checkpoint)
        stored.append(checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"])

    trainer = SimpleNamespace(save_checkpoint=save_checkpoint)
    callback.save(trainer, rerun_validation=True)
    callback.save(trainer)
    assert stored == [UNSTARTED_VALIDATION, "under way"]


def test_stored_progress_has_lightning_fields() -> None:
    progress = Trainer(logger=False, accelerator="cpu").fit_loop.epoch_loop.val_loop.batch_progress
    fields = progress.state_dict()
    assert fields.keys() == UNSTARTED_VALIDATION.keys()
    assert fields["total"].keys() == UNSTARTED_VALIDATION["total"].keys()
    progress.load_state_dict(UNSTARTED_VALIDATION)
    assert (progress.total.ready, progress.current.ready, progress.is_last_batch) == (1, 0, False)
