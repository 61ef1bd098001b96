"""How far long work is, where standard error is a terminal and where it is not."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from ret_lightning import progress

WORK = """
from ret_lightning.progress import progress_bar
for _ in progress_bar(range(3), desc="reading", unit="page"): pass
"""


def test_off_a_terminal_the_log_tells_it_in_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with caplog.at_level(logging.INFO), progress.progress_bar(total=2000, desc="reading", unit="page") as bar:
        bar.update(500)
    told = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("reading: 500 of 2000, ") and line.endswith("page/s") for line in told)
    assert not any("\r" in line or "\n" in line for line in told)
    assert capfd.readouterr() == ("", "")


def test_short_work_says_nothing(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert list(progress.progress_bar(range(3), desc="reading")) == [0, 1, 2]
        list(progress.progress_bar(range(3), desc="reading", leave=False))
        list(progress.progress_bar(range(3), desc="reading", disable=True))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_terminal_has_a_bar() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    work = subprocess.Popen([sys.executable, "-c", WORK], stderr=theirs)
    os.close(theirs)
    shown = b""
    with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # EIO when the other end is closed
        while piece := terminal.read(1000):
            shown += piece
    assert work.wait() == 0
    assert b"reading: 100%" in shown
    assert b"3/3" in shown
