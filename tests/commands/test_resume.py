"""ret-train resume=..., with processes that are really killed."""

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
    # Lightning logs a step after its checkpoint is written: a row that a kill between the two lost is logged on resume.
    assert rows(folder) == rows(undisturbed)
    assert (folder / "metrics.json").read_bytes() == (undisturbed / "metrics.json").read_bytes()


def rows(folder: Path) -> set[frozenset[tuple[str, str]]]:
    """What a run logged, but for the seconds that things took."""
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return {
            frozenset((name, value) for name, value in row.items() if value and not TIMES.search(name))
            for row in csv.DictReader(file)
        }


def test_two_ranks_that_are_killed_go_on_as_if_nothing_had_happened(
    root: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = start(*options(root, folder), cwd=tmp_path)
    wait_for_step(folder, 5, process)
    processes.kill(process)
    assert not (folder / "metrics.json").exists()
    overrides = (folder / ".hydra" / "overrides.yaml").read_text()

    again = ret_train(*options(root, folder), cwd=tmp_path)
    assert again.returncode == 2
    assert f"output_dir={folder}: holds an unfinished run; resume={folder} continues it" in again.stderr
    assert again.stderr.strip().endswith("[folder-holds-unfinished-run]")

    process = start(f"resume={folder}", cwd=tmp_path)
    wait_for_step(folder, 14, process)
    process.send_signal(signal.SIGTERM)  # to the first rank alone
    stderr = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "ret-train: stopped by SIGTERM at step" in stderr.splitlines()[-1]

    done = ret_train(f"resume={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_end(folder, undisturbed)
    assert (folder / ".hydra" / "overrides.yaml").read_text() == overrides
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]  # no folder of its own for resuming


def test_auto_begins_and_goes_on_by_one_and_the_same_command(root: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [*options(root, folder), "resume=auto"]
    process = start(*command, cwd=tmp_path)
    wait_for_step(folder, 3, process)
    processes.kill(process)
    other = ret_train(*command, "trainer.max_epochs=3", cwd=tmp_path)
    assert other.returncode == 1
    assert "holds a run of another config (trainer.max_epochs: 2 there, 3 now)" in other.stderr
    done = ret_train(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_end(folder, undisturbed)
    finished = ret_train(*command, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "the run is finished already" in finished.stdout + finished.stderr


def test_a_finished_run_is_not_run_again_but_can_go_on_longer(undisturbed: Path, tmp_path: Path) -> None:
    done = ret_train(f"resume={undisturbed}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("[resume-finished]")
    other = ret_train(f"resume={undisturbed}", f"output_dir={tmp_path / 'other'}", cwd=tmp_path)
    assert other.returncode == 2
    assert other.stderr.strip().endswith("[resume-other-output-dir]")
