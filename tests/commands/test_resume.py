"""ret-train resume=... after killed processes."""

from __future__ import annotations

import csv
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.support import processes
from tests.support.m2kr_folder import write_folder
from tests.support.small_runs import m2kr, ret_train

pytestmark = pytest.mark.slow

TIMES = re.compile("second")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("corpus") / "m2kr", training_rows=96)


def options(root: Path, folder: Path) -> list[str]:
    return m2kr(
        root, "trainer=ddp_cpu", "data.batch_size=4", "data.num_workers=1", "model.dropout=0.2", "trainer.max_epochs=2",
        "callbacks.last.every_n_steps=1", f"output_dir={folder}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = ret_train(*options(root, folder), cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    command = processes.module("ret_lightning.commands.train", *arguments)
    return processes.start(command, cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    file = folder / "checkpoints" / "last.ckpt"
    until = time.monotonic() + processes.PATIENCE
    while process.poll() is None and not (file.exists() and saved(file)["global_step"] >= step):
        if time.monotonic() > until:
            processes.abort(process)
            pytest.fail(f"no step {step} in {processes.PATIENCE:.0f} s:\n{process.stderr.read()}")
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read()


def saved(file: Path) -> dict:
    return torch.load(file, weights_only=True, map_location="cpu")


def assert_same_end(folder: Path, undisturbed: Path) -> None:
    ours, theirs = (saved(f / "checkpoints" / "last.ckpt") for f in (folder, undisturbed))
    assert ours["global_step"] == theirs["global_step"] == 24
    assert all(torch.equal(tensor, theirs["state_dict"][name]) for name, tensor in ours["state_dict"].items())
    # Lightning logs a step after its checkpoint; a row lost by a kill in between is logged on resume.
    assert rows(folder) == rows(undisturbed)
    assert (folder / "metrics.json").read_bytes() == (undisturbed / "metrics.json").read_bytes()


def rows(folder: Path) -> set[frozenset[tuple[str, str]]]:
    """Return the logged rows of a run without durations."""
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return {
            frozenset((name, value) for name, value in row.items() if value and not TIMES.search(name))
            for row in csv.DictReader(file)
        }


def test_killed_ranks_resume_to_the_same_weights(root: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(*options(root, folder), cwd=tmp_path)
    wait_for_step(folder, 5, process)
    processes.kill(process)
    assert not (folder / "metrics.json").exists()
    overrides = (folder / ".hydra" / "overrides.yaml").read_text()

    again = ret_train(*options(root, folder), cwd=tmp_path)
    assert again.returncode == 2
    assert f"resume={folder}" in again.stderr
    assert again.stderr.strip().endswith("[folder-holds-unfinished-run]")

    process = start(f"resume={folder}", cwd=tmp_path)
    wait_for_step(folder, 14, process)
    process.send_signal(signal.SIGTERM)  # only to the first rank
    stderr = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "ret-train: stopped by SIGTERM at step" in stderr.splitlines()[-1]

    done = ret_train(f"resume={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_end(folder, undisturbed)
    assert (folder / ".hydra" / "overrides.yaml").read_text() == overrides
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]  # resuming creates no other folder


def test_auto_starts_and_resumes_a_run(root: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [*options(root, folder), "resume=auto"]
    process = start(*command, cwd=tmp_path)
    wait_for_step(folder, 3, process)
    processes.kill(process)
    other = ret_train(*command, "trainer.max_epochs=3", cwd=tmp_path)
    assert other.returncode == 1
    assert "trainer.max_epochs: 2 stored, 3 now" in other.stderr
    assert other.stderr.strip().endswith("[folder-holds-other-run]")
    done = ret_train(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_end(folder, undisturbed)
    finished = ret_train(*command, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "the run is already finished" in finished.stdout + finished.stderr


def test_finished_run_is_not_run_again(undisturbed: Path, tmp_path: Path) -> None:
    done = ret_train(f"resume={undisturbed}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("[resume-finished]")
    other = ret_train(f"resume={undisturbed}", f"output_dir={tmp_path / 'other'}", cwd=tmp_path)
    assert other.returncode == 2
    assert other.stderr.strip().endswith("[resume-other-output-dir]")
