"""A run of ret-train and what ret-export made of it, for the tests of the commands that take a checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.commands.test_train import m2kr, ret_train
from tests.support import processes
from tests.support.m2kr_folder import write_folder


class Trained(NamedTuple):
    """Folders: the corpus, the run, the published layout."""

    root: Path
    run: Path
    exported: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    made = Trained(write_folder(folder / "m2kr"), folder / "run", folder / "exported")
    done = ret_train(*m2kr(made.root, f"output_dir={made.run}", "trainer.max_epochs=1"), cwd=folder)
    assert done.returncode == 0, done.stderr
    done = command("export", f"checkpoint={made.run}", f"output={made.exported}", cwd=folder)
    assert done.returncode == 0, done.stderr
    return made


def command(name: str, *options: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return processes.run(processes.module(f"ret_lightning.commands.{name}", *options), cwd, one_thread())


def one_thread() -> dict[str, str]:
    """The environment of a process whose numbers are compared to the last bit, with another number of ranks, say."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs a command in this process, which saves the seconds of another one's imports, and gives its exit code."""

    def run(name: str, *options: object) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"ret-{name}", *map(str, options)])
        try:
            import_module(f"ret_lightning.commands.{name}").main()
        except SystemExit as error:
            return int(error.code or 0)
        return 0

    return run
