"""Atomic writes, and the detection of full disks."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from ret_lightning.errors import UserError
from ret_lightning.runtime.atomic_files import (
    UNFINISHED,
    disk_is_full,
    remove_unfinished,
    temporary_name,
    whole_file,
    write_text,
)


def write_half(path: Path) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError


def test_failed_write_keeps_earlier_file(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "old")
    for name in ("a.txt", "b.txt"):
        with pytest.raises(RuntimeError):
            write_half(tmp_path / "deep" / name)
    assert (tmp_path / "deep" / "a.txt").read_text() == "old"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.txt"]


def test_file_permissions_follow_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with whole_file(tmp_path / "a.bin") as unfinished:
            unfinished.unlink()  # simulates a library that replaces the file
            os.close(os.open(unfinished, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o644


def test_temporary_names_do_not_collide(tmp_path: Path) -> None:
    names = {temporary_name(tmp_path / "a.json").name for _ in range(100)}
    assert len(names) == 100
    assert all(UNFINISHED.fullmatch(name) for name in names)
    assert all(str(os.getpid()) in name and socket.gethostname() in name for name in names)


def test_concurrent_writers_use_separate_temporary_files(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as first, whole_file(tmp_path / "a") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"  # the block that ended last
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_remove_unfinished_keeps_other_files(tmp_path: Path) -> None:
    for name in (".a.json.12", ".a.json.host.12.0123abcd", ".tmpAbC123", ".gitignore", "a.12", ".tmp"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".gitignore", "a.12", ".tmp"}


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (ValueError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("unexpected pos 768 vs 662"), False),  # the disk has free space
        (UserError("a broken row"), False),
    ],
)
def test_full_disk_is_detected(tmp_path: Path, error: Exception, full: bool) -> None:
    assert disk_is_full(error, tmp_path) == full
    outer = RuntimeError("wrapped")
    outer.__cause__ = error
    assert disk_is_full(outer, tmp_path) == full
