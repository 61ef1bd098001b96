"""Files are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ret_lightning.atomic import whole_file, write_text


def write_half(path: Path) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError


def test_a_block_that_raises_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "old")
    for name in ("a.txt", "b.txt"):
        with pytest.raises(RuntimeError):
            write_half(tmp_path / "deep" / name)
    assert (tmp_path / "deep" / "a.txt").read_text() == "old"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.txt"]


def test_others_may_read_it_where_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with whole_file(tmp_path / "a.bin") as unfinished:
            unfinished.unlink()  # as a library does that writes to a file of its own
            os.close(os.open(unfinished, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o644
