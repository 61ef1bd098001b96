"""The best checkpoints of a folder: restored, removed and linked when training starts."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ret_lightning.errors import ConfigError
from ret_lightning.training.checkpointing.best_checkpoint import BestCheckpoint
from ret_lightning.training.checkpointing.selection import SCORES
from tests.support.scored_checkpoints import MRR, RECALL, write_checkpoint

MODULE = SimpleNamespace(device=torch.device("cpu"))


def make_trainer() -> SimpleNamespace:
    """Return the parts of a single-process Trainer that `BestCheckpoint` reads."""
    strategy = SimpleNamespace(remove_checkpoint=lambda file: Path(file).unlink(), broadcast=lambda value: value)
    return SimpleNamespace(is_global_zero=True, strategy=strategy, callback_metrics={}, ckpt_path=None)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Three scored checkpoints, of which step 10 has the best recall and step 5 the best MRR; and the last one."""
    for step, recall, mrr in ((5, 0.5, 0.9), (10, 0.8, 0.4), (15, 0.7, 0.6)):
        write_checkpoint(tmp_path, f"epoch_{step:03d}.ckpt", step, {RECALL: recall, MRR: mrr})
    write_checkpoint(tmp_path, "last.ckpt", 20)
    return tmp_path / "checkpoints"


def start(folder: Path, **options: Any) -> BestCheckpoint:
    callback = BestCheckpoint(str(folder), "epoch_{epoch:03d}", **options)
    callback.on_train_start(make_trainer(), MODULE)
    return callback


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"save_top_k": -1}, ["epoch_010", "epoch_015", "epoch_005"]),
        ({"save_top_k": 2}, ["epoch_010", "epoch_015"]),
        ({"save_top_k": 2, "mode": "min"}, ["epoch_005", "epoch_015"]),
        ({"save_top_k": 1, "monitor": MRR}, ["epoch_005"]),
    ],
)
def test_best_files_of_folder_are_kept(checkpoints: Path, options: dict, kept: list[str]) -> None:
    callback = start(checkpoints, **options)
    assert [Path(file).stem for file in callback.best_k_models] == kept
    assert {file.stem for file in checkpoints.glob("epoch_*.ckpt")} == set(kept)
    assert (checkpoints / "last.ckpt").is_file()
    assert os.readlink(checkpoints / "best.ckpt") == f"{kept[0]}.ckpt"
    assert Path(callback.kth_best_model_path).stem == kept[-1]


def test_link_is_relative_and_follows_a_moved_folder(checkpoints: Path, tmp_path: Path) -> None:
    start(checkpoints, save_top_k=-1)
    moved = checkpoints.rename(tmp_path / "moved")
    assert torch.load(moved / "best.ckpt", weights_only=True)["global_step"] == 10
    start(moved, save_top_k=-1, monitor=MRR)
    assert torch.load(moved / "best.ckpt", weights_only=True)["global_step"] == 5


def test_file_named_like_the_link_is_renamed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "best.ckpt", 5, {RECALL: 0.5})
    start(tmp_path / "checkpoints", save_top_k=3)
    assert os.readlink(tmp_path / "checkpoints/best.ckpt") == "best_step_00000005.ckpt"
    assert torch.load(tmp_path / "checkpoints/best_step_00000005.ckpt", weights_only=True)[SCORES][RECALL] == 0.5


def test_scores_are_stored_in_own_checkpoints_only(tmp_path: Path) -> None:
    callback, trainer = BestCheckpoint(str(tmp_path)), make_trainer()
    trainer.callback_metrics = {RECALL: torch.tensor(0.5)}
    checkpoint: dict[str, Any] = {}
    callback.on_save_checkpoint(trainer, MODULE, checkpoint)
    assert checkpoint == {}
    callback._saving = True
    callback.on_save_checkpoint(trainer, MODULE, checkpoint)
    assert checkpoint == {SCORES: {RECALL: 0.5}}


def test_file_names_are_distinct(tmp_path: Path) -> None:
    metrics = {"step": torch.tensor(7), "epoch": torch.tensor(2)}
    several = BestCheckpoint(str(tmp_path), "best", save_top_k=3)
    assert Path(several.format_checkpoint_name(metrics)).name == "best_step_00000007.ckpt"
    one = BestCheckpoint(str(tmp_path), "best", save_top_k=1)
    assert Path(one.format_checkpoint_name(metrics)).name == "best.ckpt"
    by_epoch = BestCheckpoint(str(tmp_path), "epoch_{epoch:03d}", save_top_k=3)
    first = by_epoch.format_checkpoint_name(metrics)
    by_epoch.best_k_models = {first: torch.tensor(0.5)}
    assert Path(first).name == "epoch_002.ckpt"
    assert Path(by_epoch.format_checkpoint_name(metrics)).name == "epoch_002_step_00000007.ckpt"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"mode": "best"}, "best-checkpoint-mode"),
        ({"save_top_k": -2}, "best-checkpoint-top-k"),
        ({"save_last": True}, "best-checkpoint-unsupported"),
        ({"enable_version_counter": True}, "best-checkpoint-unsupported"),
        ({"filename": "last"}, "best-checkpoint-filename"),
        ({"filename": "a/b"}, "best-checkpoint-filename"),
    ],
)
def test_invalid_settings_are_refused(options: dict, code: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        BestCheckpoint(str(tmp_path), **options)
    assert caught.value.code == code
