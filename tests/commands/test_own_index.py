"""A user-defined index, in one file and one config, in all commands."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from tests.support import processes
from tests.support.m2kr_folder import write_folder
from tests.support.own_index import MODULE, write_own_index
from tests.support.small_runs import small_run

pytestmark = pytest.mark.slow


def test_own_index_through_the_commands(
    call: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, run, index = tmp_path / "own", tmp_path / "run", tmp_path / "index"
    own.mkdir()
    write_own_index(own)
    monkeypatch.syspath_prepend(own)
    monkeypatch.setenv(OWN_PACKAGES, MODULE)
    root, choice = write_folder(tmp_path / "m2kr"), ("--config-dir", str(own / "conf"), "retrieval=own")
    assert call("train", *choice, *small_run(root, run, "trainer.max_epochs=1")) == 0
    assert (run / "metrics.json").is_file()
    passages = f"passages={root / 'jsonl/m2kr/passages/evqa_passages_test.jsonl'}"
    images = f"image_root={root / 'images/m2kr/images'}"
    assert call("index", *choice, f"checkpoint={run}", passages, images, f"index={index}") == 0

    def search(targets: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(own), OWN_PACKAGES: targets}
        options = (f"index={index}", "query=hello", "top_k=3")
        return processes.run(processes.module("ret_lightning.commands.search", *options), tmp_path, environment)

    done = search(MODULE)  # a new process, which has not imported the module
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    refused = search("")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.endswith("[saved-index-class-unknown]")
    assert f"{OWN_PACKAGES}={MODULE}" in line
