"""Checkpoint files: complete or absent, frozen weights once per folder, trained weights in a second file."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ret_lightning import RetModule
from ret_lightning.errors import UserError
from ret_lightning.training.checkpointing.checkpoint_io import RunCheckpointIO, read_checkpoint, repair_checkpoints
from tests.support.tiny_training import checkpoint, make_module


@pytest.fixture
def frozen() -> RetModule:
    return make_module(train_backbones=False)


def test_frozen_weights_are_written_once_and_restored(frozen: RetModule, tmp_path: Path) -> None:
    files, folder = RunCheckpointIO(), tmp_path / "checkpoints"
    files.save_checkpoint(checkpoint(frozen, 1), folder / "best.ckpt")
    written = (folder / "frozen.safetensors").stat().st_mtime_ns
    files.save_checkpoint(checkpoint(frozen, 2), folder / "last.ckpt")
    RunCheckpointIO().save_checkpoint(checkpoint(frozen, 3), folder / "last.ckpt")  # by a resumed run
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


def test_changed_frozen_weights_are_rewritten(frozen: RetModule, tmp_path: Path) -> None:
    RunCheckpointIO().save_checkpoint(checkpoint(frozen), tmp_path / "a.ckpt")
    with torch.no_grad():
        for parameter in frozen.retriever.query_tower.text_backbone.parameters():
            parameter.add_(1)
    RunCheckpointIO().save_checkpoint(checkpoint(frozen), tmp_path / "b.ckpt")
    read = read_checkpoint(tmp_path / "b.ckpt")
    assert all(torch.equal(read["state_dict"][n], t) for n, t in frozen.state_dict().items())
    with pytest.raises(UserError) as caught:
        read_checkpoint(tmp_path / "a.ckpt")
    assert (caught.value.code, caught.value.path) == ("frozen-weights-differ", str(tmp_path / "frozen.safetensors"))


def test_checkpoint_without_frozen_weights_is_self_contained(tmp_path: Path) -> None:
    module = make_module()
    RunCheckpointIO().save_checkpoint(checkpoint(module), tmp_path / "last.ckpt")
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "last.safetensors"}
    read = read_checkpoint(tmp_path / "last.ckpt")
    assert all(torch.equal(read["state_dict"][n], t) for n, t in module.state_dict().items())


def test_weights_files_load_into_the_retriever(frozen: RetModule, tmp_path: Path) -> None:
    RunCheckpointIO().save_checkpoint(checkpoint(frozen), tmp_path / "last.ckpt")
    other = make_module(train_backbones=False).retriever
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    for name in ("last", "frozen"):
        missing = other.load_state_dict(load_file(tmp_path / f"{name}.safetensors"), strict=False)
        assert not missing.unexpected_keys
    assert all(torch.equal(t, frozen.retriever.state_dict()[n]) for n, t in other.state_dict().items())


def test_remove_deletes_both_files(frozen: RetModule, tmp_path: Path) -> None:
    files = RunCheckpointIO()
    files.save_checkpoint(checkpoint(frozen), tmp_path / "step_00000001.ckpt")
    files.remove_checkpoint(tmp_path / "step_00000001.ckpt")
    assert {p.name for p in tmp_path.iterdir()} == {"frozen.safetensors"}


@pytest.mark.parametrize("part", ["checkpoint", "weights"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk-full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk-full"),
        (RuntimeError("unexpected pos 19896256 vs 19896144"), "disk-full"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk-full"),
        (OSError(errno.EACCES, "Permission denied"), "checkpoint-not-writable"),
    ],
)
def test_failed_write_keeps_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, part: str
) -> None:
    module, file = make_module(), tmp_path / "last.ckpt"
    RunCheckpointIO().save_checkpoint(checkpoint(module, 1), file)

    def save(content: object, path: Path, *_: object) -> None:
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr("torch.save" if part == "checkpoint" else "safetensors.torch.save_file", save)
    # The disk is queried if a library reports no reason.
    monkeypatch.setattr(
        "ret_lightning.runtime.atomic_files._has_room", lambda folder, size: not isinstance(error, RuntimeError)
    )
    with pytest.raises(UserError) as caught:
        RunCheckpointIO().save_checkpoint(checkpoint(module, 2), file)
    assert caught.value.code == code
    assert read_checkpoint(file)["global_step"] == (1 if part == "checkpoint" else 2)
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "last.safetensors"}


@pytest.mark.parametrize("existed", [True, False])
def test_full_disk_error_names_existing_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    if existed:
        RunCheckpointIO().save_checkpoint(checkpoint(make_module(), 1), tmp_path / "last.ckpt")

    def save(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.save", save)
    with pytest.raises(UserError) as caught:
        RunCheckpointIO().save_checkpoint(checkpoint(make_module(), 2), tmp_path / "last.ckpt")
    assert ("earlier file" in str(caught.value)) == existed


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_full_tmpfs_is_reported(tmp_path: Path) -> None:
    """PyTorch's own message is about file positions, not about the disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(UserError) as caught:
            RunCheckpointIO().save_checkpoint(checkpoint(make_module(), 1), disk / "last.ckpt")
        assert caught.value.code == "disk-full"
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # the traceback holds the file open


def test_repair_removes_temporary_files(tmp_path: Path) -> None:
    for name in (".last.ckpt.123", ".last.ckpt.host-1.12.0a1b2c3d", ".tmpx1Y2z3", "last.ckpt", ".hidden", ".tmp"):
        (tmp_path / name).write_text("x")
    repair_checkpoints(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", ".hidden", ".tmp"}


@pytest.mark.parametrize(("damage", "code"), [(None, "frozen-weights-missing"), (b"torn", "frozen-weights-unreadable")])
def test_missing_or_damaged_frozen_weights_are_refused(
    frozen: RetModule, tmp_path: Path, damage: bytes | None, code: str
) -> None:
    RunCheckpointIO().save_checkpoint(checkpoint(frozen), tmp_path / "last.ckpt")
    weights = tmp_path / "frozen.safetensors"
    weights.unlink()
    if damage is not None:
        weights.write_bytes(damage)
    with pytest.raises(UserError) as caught:
        read_checkpoint(tmp_path / "last.ckpt")
    assert (caught.value.code, caught.value.path) == (code, str(weights))


@pytest.mark.parametrize("damage", ["truncated", "tensor missing"])
def test_incomplete_frozen_weights_are_refused(frozen: RetModule, tmp_path: Path, damage: str) -> None:
    RunCheckpointIO().save_checkpoint(checkpoint(frozen), tmp_path / "last.ckpt")
    weights = tmp_path / "frozen.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        with safe_open(weights, "pt") as file:
            metadata = file.metadata()
        save_file(dict(list(load_file(weights).items())[1:]), weights, metadata)
    with pytest.raises(UserError) as caught:
        read_checkpoint(tmp_path / "last.ckpt")
    assert (caught.value.code, caught.value.path) == ("frozen-weights-unreadable", str(weights))


def test_other_files_are_not_checkpoints(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    with pytest.raises(UserError) as caught:
        read_checkpoint(file)
    assert (caught.value.code, caught.value.path) == ("checkpoint-missing", str(file))
    torch.save({"state_dict": {}, "epoch": 0}, file)
    with pytest.raises(UserError) as caught:
        read_checkpoint(file)
    assert (caught.value.code, caught.value.path, caught.value.key) == ("checkpoint-foreign", str(file), "global_step")
