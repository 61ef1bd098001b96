"""The tests' own helpers: commands as processes, anew or as forks of a server."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support import fork_server, processes

HANGS = """
import subprocess, sys, time
def waits_for_nobody():
    subprocess.run([sys.executable, "-c", "import time\\ndef child_waits():\\n time.sleep(60)\\nchild_waits()"])
waits_for_nobody()
"""


def test_what_a_hanging_command_and_its_children_are_at_is_told(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception) as failed:
        processes.run([sys.executable, "-c", HANGS], tmp_path, patience=4)
    assert "did not end in 4 s" in str(failed.value)
    assert "waits_for_nobody" in str(failed.value)
    assert "child_waits" in str(failed.value)


def test_a_command_that_ends_gives_code_and_both_streams(tmp_path: Path) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    done = processes.run([sys.executable, "-c", code], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


SHOWS = """
import os, signal, sys, threading
import torch
said = [os.environ.get(name) for name in ("SAID", "PYTHONPATH", "WANDB_SERVICE")]
print(__name__, sys.argv[1:], os.getcwd(), *said)
print("err", file=sys.stderr, flush=True)
sys.stdout.flush()
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "raise":
    raise ValueError("no")
sys.exit(3)
"""


@pytest.fixture
def both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a module of the test both ways: in a new interpreter, and as a fork of the server."""

    def run(name: str, *arguments: str, **env: str):
        command = processes.module(name, *arguments)
        done = []
        for prefix in ("nothing", name):
            monkeypatch.setattr(fork_server, "_PREFIX", prefix)
            assert fork_server.can_run(command, os.environ) == (prefix == name)
            done.append(processes.run(command, tmp_path, {**os.environ, **env}))
        return done

    return run


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["exit", "kill", "raise"])
def test_a_fork_does_what_a_new_process_does(tmp_path: Path, both_ways, ending: str, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_SERVICE", "of this process")
    (tmp_path / "shows.py").write_text(SHOWS)
    new, fork = both_ways("shows", ending, "two words", SAID="this", PYTHONPATH="there")
    assert "__main__" in new.stdout
    assert "this there None" in new.stdout
    assert (fork.returncode, fork.stdout) == (new.returncode, new.stdout)
    assert fork.stderr.splitlines()[0] == new.stderr.splitlines()[0] == "err"
    assert fork.stderr.splitlines()[-1] == new.stderr.splitlines()[-1]


@pytest.mark.slow
def test_forks_share_no_temporary_folder_that_one_of_them_removes(tmp_path: Path, monkeypatch) -> None:
    code = "import wandb\nfrom PIL import Image\nwandb.Image(Image.new('RGB', (2, 2)))\n"
    (tmp_path / "pictures.py").write_text(code)
    monkeypatch.setattr(fork_server, "_PREFIX", "pictures")
    for _ in range(2):
        done = processes.run(processes.module("pictures"), tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_fork_that_hangs_shows_what_it_is_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    monkeypatch.setattr(fork_server, "_PREFIX", "hangs")
    for _ in range(2):
        with pytest.raises(pytest.fail.Exception, match=r"(?s)did not end in 4 s.*waits_for_nobody"):
            processes.run(processes.module("hangs"), tmp_path, patience=4)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "HF_DATASETS_CACHE", "XDG_CACHE_HOME"])
def test_what_libraries_read_at_import_needs_a_new_process(name: str) -> None:
    command = processes.module("ret_lightning.commands.train")
    assert not fork_server.can_run(command, {**os.environ, name: "another"})
    assert not fork_server.can_run([sys.executable, "-c", "pass"], os.environ)
