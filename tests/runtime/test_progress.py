"""Progress on a terminal, and in the log if standard error is not a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from ret_lightning.runtime import progress

WORK = """
from ret_lightning.runtime.progress import progress_bar
for _ in progress_bar(range(3), desc="reading", unit="page"): pass
"""


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list that collects the lines written to the log."""
    lines: list[str] = []
    monkeypatch.setattr(progress.log, "info", lambda text, *arguments: lines.append(text % arguments))
    return lines


def test_progress_is_logged_without_terminal(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[str], capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.0)
    with progress.progress_bar(total=2000, desc="reading", unit="page") as bar:
        bar.update(500)
    assert any(line.startswith("reading: 500 of 2000, ") and line.endswith("page/s") for line in log_lines)
    assert not any("\r" in line or "\n" in line for line in log_lines)
    assert capfd.readouterr() == ("", "")


def test_short_work_logs_nothing(log_lines: list[str], capfd: pytest.CaptureFixture) -> None:
    assert list(progress.progress_bar(range(3), desc="reading")) == [0, 1, 2]
    list(progress.progress_bar(range(3), desc="reading", leave=False))
    list(progress.progress_bar(range(3), desc="reading", disable=True))
    assert log_lines == []
    assert capfd.readouterr() == ("", "")


def test_terminal_gets_progress_bar() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    work = subprocess.Popen([sys.executable, "-c", WORK], stderr=theirs)
    os.close(theirs)
    output = b""
    with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # EIO when the other end is closed
        while chunk := terminal.read(1000):
            output += chunk
    assert work.wait() == 0
    assert b"reading: 100%" in output
    assert b"3/3" in output
