"""Commands that tests run as processes of their own; one that does not end is told of with what each of its threads is at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

# Seconds; ten times what the longest command takes on two busy cores, and less than pytest gives a test.
PATIENCE = 400.0


def run(
    command: Sequence[str | Path], cwd: Path, env: Mapping[str, str] | None = None, patience: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` does with `capture_output`, of a command that is expected to end, and all that it started too."""
    process = start(command, cwd, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        stdout, stderr = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        abort(process)
        said = "\n".join(process.communicate())
        pytest.fail(f"{process.args} did not end in {patience:.0f} s:\n{said}")
    except BaseException:
        kill(process)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def start(
    command: Sequence[str | Path], cwd: Path, env: Mapping[str, str] | None = None, **streams: int
) -> subprocess.Popen[str]:
    """A command in a group of its own, so that it and all that it starts can be sent a signal together."""
    env = {**(os.environ if env is None else env), "PYTHONFAULTHANDLER": "1"}
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, start_new_session=True, **streams)


def kill(process: subprocess.Popen[str]) -> None:
    """Ends a process and all that it started, at once."""
    _signal_all(process, signal.SIGKILL)
    process.wait()


def abort(process: subprocess.Popen[str]) -> None:
    """Ends a process and all that it started; each says on its stderr what its threads are at."""
    _signal_all(process, signal.SIGABRT)
    time.sleep(2)  # they may be many, and the pipe that they write to is not read meanwhile: not longer than that
    kill(process)


def _signal_all(process: subprocess.Popen[str], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def module(name: str, *options: object) -> list[str]:
    """The command line of `python -m name`."""
    return [sys.executable, "-m", name, *map(str, options)]
