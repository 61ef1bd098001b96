"""Commands that tests run in processes of their own; a process that does not end is reported with the stacks of its threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support import fork_server

# Seconds; ten times what the longest command takes on two busy cores, and less than pytest gives a test.
PATIENCE = 400.0


def run(
    command: Sequence[str | Path], cwd: Path, env: Mapping[str, str] | None = None, patience: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` does with `capture_output`, of a command that is expected to end, and all that it started too.

    A command of the package runs as a fork of a process that has imported its libraries, where that makes no difference.
    """
    env = _inherited(env)
    if fork_server.can_run(command, env):
        return _run_preloaded(command, cwd, env, patience)
    process = start(command, cwd, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        stdout, stderr = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        abort(process)
        said = "\n".join(process.communicate())
        _fail(command, patience, said)
    except BaseException:
        kill(process)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def _run_preloaded(
    command: Sequence[str | Path], cwd: Path, env: Mapping[str, str], patience: float
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = _server().start(command, cwd, env, stdout.fileno(), stderr.fileno())
        try:
            code = _server().wait(patience)
            if code is None:
                _signal_group(process, signal.SIGABRT)
                _server().wait(2)
        except BaseException:
            _signal_group(process, signal.SIGKILL)
            raise
        said = []
        for stream in (stdout, stderr):
            stream.seek(0)
            said.append(stream.read())
    if code is None:
        _signal_group(process, signal.SIGKILL)
        _fail(command, patience, "\n".join(said))
    return subprocess.CompletedProcess(command, code, *said)


@cache
def _server() -> fork_server.Preloaded:
    return fork_server.Preloaded()


def _fail(command: Sequence[str | Path], patience: float, said: str) -> NoReturn:
    pytest.fail(f"{command} did not end in {patience:.0f} s:\n{said}")


def start(
    command: Sequence[str | Path], cwd: Path, env: Mapping[str, str] | None = None, **streams: int
) -> subprocess.Popen[str]:
    """A command in a group of its own, so that it and all that it starts can be sent a signal together."""
    env = {**_inherited(env), "PYTHONFAULTHANDLER": "1"}
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, start_new_session=True, **streams)


def _inherited(env: Mapping[str, str] | None) -> dict[str, str]:
    """An environment, by default this process's, without the W&B service of a test that logs in this process."""
    return {name: value for name, value in (os.environ if env is None else env).items() if name != fork_server.SERVICE}


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
    _signal_group(process.pid, number)


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def module(name: str, *options: object) -> list[str]:
    """The command line of `python -m name`."""
    return [sys.executable, "-m", name, *map(str, options)]
