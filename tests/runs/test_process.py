"""Errors of the machine during a run: one line, and how to resume."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from ret_lightning.errors import UserError
from ret_lightning.runs.process import add_resume_hint


class Killed(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        return index


def test_killed_worker_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught, add_resume_hint(tmp_path):
        list(DataLoader(Killed(), num_workers=1))
    assert (caught.value.code, caught.value.folder) == ("loader-worker-killed", str(tmp_path))


@pytest.mark.parametrize("resumable", [False, True])
def test_full_disk_is_reported(tmp_path: Path, resumable: bool) -> None:
    file = tmp_path / "csv" / "metrics.csv"
    if resumable:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(UserError) as caught, add_resume_hint(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
    assert (caught.value.code, caught.value.path) == ("disk-full", str(file))
    assert (f"ret-train resume={tmp_path}" in str(caught.value)) == resumable  # only if there is a checkpoint


def test_other_errors_are_unchanged(tmp_path: Path) -> None:
    for error in (RuntimeError("a bug"), OSError(errno.EACCES, "Permission denied")):
        with pytest.raises(type(error)) as raised, add_resume_hint(tmp_path):
            raise error
        assert raised.value is error


def test_user_error_logs_how_to_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for has_checkpoint in (False, True):
        if has_checkpoint:
            (tmp_path / "checkpoints").mkdir()
            (tmp_path / "checkpoints" / "last.ckpt").touch()
        with pytest.raises(UserError), add_resume_hint(tmp_path):
            raise UserError("a broken row")
        assert (f"ret-train resume={tmp_path}" in caplog.text) == has_checkpoint
