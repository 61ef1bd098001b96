"""Checkpoint files: whole or not there, frozen weights once a folder, trained weights alone beside each."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ret_lightning import RetModule
from ret_lightning.errors import UserError
from ret_lightning.training import checkpoint_files
from ret_lightning.training.checkpoint_files import RunCheckpointIO, read_checkpoint
from ret_lightning.training.resumption import last_whole_checkpoint, remove_unfinished_files
from tests.training.conftest import make_module


def checkpoint(module: RetModule, step: int = 1) -> dict:
    content = {"epoch": 0, "global_step": step, "state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    return content


@pytest.fixture
def frozen() -> RetModule:
    return make_module(train_backbones=False)


def test_frozen_weights_are_written_once_and_come_back(frozen: RetModule, tmp_path: Path) -> None:
    files, folder = RunCheckpointIO(), tmp_path / "checkpoints"
    files.save_checkpoint(checkpoint(frozen, 1), folder / "best.ckpt")
    written = (folder / "frozen.safetensors").stat().st_mtime_ns
    files.save_checkpoint(checkpoint(frozen, 2), folder / "last.ckpt")
    RunCheckpointIO().save_checkpoint(checkpoint(frozen, 3), folder / "last.ckpt")  # a resumed run's
    assert (folder / "frozen.safetensors").stat().st_mtime_ns == written
    backbone = sum(p.numel() for p in frozen.retriever.query_tower.text_backbone.parameters()) * 4
    assert (folder / "frozen.safetensors").stat().st_size > backbone
    trained = sum(p.numel() for p in frozen.parameters() if p.requires_grad) * 4
    assert trained < (folder / "last.ckpt").stat().st_size < trained + 200_000  # names and buffers
    for name, step in (("best.ckpt", 1), ("last.ckpt", 3)):
        read = files.load_checkpoint(folder / name)
        assert read["global_step"] == step
        assert read["state_dict"].keys() == frozen.state_dict().keys()
        assert all(torch.equal(read["state_dict"][n], t) for n, t in frozen.state_dict().items())


def test_other_frozen_weights_take_their_place(frozen: RetModule, tmp_path: Path) -> None:
    RunCheckpointIO().save_checkpoint(checkpoint(frozen), tmp_path / "a.ckpt")
    with torch.no_grad():
        for parameter in frozen.retriever.query_tower.text_backbone.parameters():
            parameter.add_(1)
    RunCheckpointIO().save_checkpoint(checkpoint(frozen), tmp_path / "b.ckpt")
    read = read_checkpoint(tmp_path / "b.ckpt")
    assert all(torch.equal(read["state_dict"][n], t) for n, t in frozen.state_dict().items())
    with pytest.raises(UserError, match=r"frozen\.safetensors: holds the frozen weights of another run than a\.ckpt"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_without_frozen_weights_a_checkpoint_stands_alone(tmp_path: Path) -> None:
    module = make_module()
    RunCheckpointIO().save_checkpoint(checkpoint(module), tmp_path / "last.ckpt")
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "last.safetensors"}
    read = read_checkpoint(tmp_path / "last.ckpt")
    assert all(torch.equal(read["state_dict"][n], t) for n, t in module.state_dict().items())


def test_the_weights_alone_fit_the_retriever(frozen: RetModule, tmp_path: Path) -> None:
    RunCheckpointIO().save_checkpoint(checkpoint(frozen), tmp_path / "last.ckpt")
    other = make_module(train_backbones=False).retriever
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    for name in ("last", "frozen"):
        missing = other.load_state_dict(load_file(tmp_path / f"{name}.safetensors"), strict=False)
        assert not missing.unexpected_keys
    assert all(torch.equal(t, frozen.retriever.state_dict()[n]) for n, t in other.state_dict().items())


def test_removing_takes_both_files(frozen: RetModule, tmp_path: Path) -> None:
    files = RunCheckpointIO()
    files.save_checkpoint(checkpoint(frozen), tmp_path / "step_00000001.ckpt")
    files.remove_checkpoint(tmp_path / "step_00000001.ckpt")
    assert {p.name for p in tmp_path.iterdir()} == {"frozen.safetensors"}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed\nat 0")]
)
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    module, file = make_module(), tmp_path / "last.ckpt"
    RunCheckpointIO().save_checkpoint(checkpoint(module, 1), file)

    def save(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint_files.torch, "save", save)
    with pytest.raises(
        UserError, match=r"last\.ckpt: the checkpoint cannot be written \(.*; the one of before is untouched"
    ):
        RunCheckpointIO().save_checkpoint(checkpoint(module, 2), file)
    assert read_checkpoint(file)["global_step"] == 1
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "last.safetensors"}


def test_a_torn_checkpoint_is_never_taken_for_a_whole_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, folder = make_module(), tmp_path / "checkpoints"
    for step, name in ((1, "best"), (2, "last"), (2, "step_00000002")):
        RunCheckpointIO().save_checkpoint(checkpoint(module, step), folder / f"{name}.ckpt")
    assert last_whole_checkpoint(tmp_path) == folder / "last.ckpt"  # of two of one step
    whole = (folder / "last.ckpt").read_bytes()
    (folder / "step_00000002.ckpt").unlink()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (folder / "last.ckpt").write_bytes(whole[:length])
        assert last_whole_checkpoint(tmp_path) == folder / "best.ckpt"
    assert "passed over" in caplog.text
    (folder / "best.ckpt").write_text("nonsense")
    assert last_whole_checkpoint(tmp_path) is None


def test_what_a_killed_run_left_half_written_goes(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in (".last.ckpt.123", ".last.safetensors.99", "last.ckpt", ".hidden"):
        (folder / name).write_text("x")
    remove_unfinished_files(tmp_path)
    assert {p.name for p in folder.iterdir()} == {"last.ckpt", ".hidden"}


def test_missing_frozen_weights_are_told(frozen: RetModule, tmp_path: Path) -> None:
    RunCheckpointIO().save_checkpoint(checkpoint(frozen), tmp_path / "last.ckpt")
    (tmp_path / "frozen.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"frozen\.safetensors: no such file; the frozen weights of last\.ckpt stand in it"
    ):
        read_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "frozen.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"frozen\.safetensors"):
        read_checkpoint(tmp_path / "last.ckpt")
