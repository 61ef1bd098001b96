"""Commands use the best checkpoint of a run folder, also of a moved, resumed or damaged run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.m2kr_folder import write_folder
from tests.support.small_runs import finished_run, small_run

pytestmark = pytest.mark.slow  # each test trains for a few seconds

Call = Callable[..., int]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("corpus") / "m2kr", training_rows=40)


def scores(run: Path, metric: str = "val/mean/recall@5") -> dict[int, float]:
    """Map optimizer steps to validation scores, from the CSV file."""
    rows = pandas.read_csv(run / "csv" / "metrics.csv")[["step", metric]].dropna()
    return {int(step) + 1: value for step, value in zip(rows["step"], rows[metric], strict=True)}


def best_step(run: Path, metric: str = "val/mean/recall@5", mode: str = "max") -> int:
    """Return the step with the best score, the earliest one if equal."""
    found = scores(run, metric)
    return sorted(found, key=lambda step: (-found[step] if mode == "max" else found[step], step))[0]


def step_of(file: Path) -> int:
    return torch.load(file, weights_only=True, mmap=True)["global_step"]


def assert_best(run: Path, step: int, call: Call, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Assert that best.ckpt, origin.json, ret-export and ret-evaluate use the checkpoint of a step."""
    assert step_of(run / "checkpoints" / "best.ckpt") == step
    origin = json.loads((run / "origin.json").read_text())
    assert origin["tested_step"] == step
    data = ["data=m2kr", f"data.root={run.parent / 'm2kr'}", "trainer.enable_progress_bar=false"]
    for name, options in (
        ("export", [f"output={tmp_path / 'exported'}", "overwrite=true"]),
        ("evaluate", [f"output_dir={tmp_path / 'evaluated'}", *data]),
    ):
        capfd.readouterr()
        assert call(name, f"checkpoint={run}", *options) == 0
        log = "".join(capfd.readouterr())
        assert f", step {step} (best by " in log, log
        assert f"{run}/checkpoints/" in log
    evaluated, tested = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "evaluated", run))
    assert evaluated == tested
    shutil.rmtree(tmp_path / "evaluated")


@pytest.fixture
def here(root: Path, tmp_path: Path) -> Path:
    (tmp_path / "m2kr").symlink_to(root)
    return tmp_path


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs; tests copy it."""
    return finished_run(root, tmp_path_factory.mktemp("finished") / "run", "trainer.max_epochs=2")


def copied(finished: Path, folder: Path) -> Path:
    return Path(shutil.copytree(finished, folder, symlinks=True))


def test_top_k_keeps_the_best_files(root: Path, here: Path, call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    run = here / "run"
    assert call("train", *small_run(root, run, "trainer.max_epochs=4", "callbacks.checkpoint.save_top_k=2")) == 0
    found = scores(run)
    kept = sorted(found, key=lambda step: (-found[step], step))[:2]
    names = {path.name for path in (run / "checkpoints").glob("*.ckpt")}
    assert names == {f"best_step_{step:08d}.ckpt" for step in kept} | {"best.ckpt", "last.ckpt"}
    weights = load_file(run / "checkpoints" / "best.safetensors")
    saved = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, saved[f"retriever.{name}"]) for name, tensor in weights.items())
    assert_best(run, best_step(run), call, here, capfd)


@pytest.mark.parametrize("occupied", [False, True])
def test_moved_run_keeps_its_best(
    finished: Path, root: Path, here: Path, call: Call, capfd: pytest.CaptureFixture[str], occupied: bool
) -> None:
    former, run = copied(finished, here / "former"), here / "moved"
    shutil.move(former, run)
    if occupied:  # another run in the former folder, with other best weights
        copied(finished, former)
        shutil.copy(former / "checkpoints" / "last.ckpt", former / "checkpoints" / "best.ckpt")
    others = sorted((former / "checkpoints").glob("*")) if occupied else []
    before = [path.read_bytes() for path in others]
    assert call("train", f"resume={run}", "trainer.max_epochs=4") == 0
    assert_best(run, best_step(run), call, here, capfd)
    assert [path.read_bytes() for path in others] == before
    assert occupied or not former.exists()


def test_moved_run_without_test_is_tested(finished: Path, here: Path, call: Call) -> None:
    run = copied(finished, here / "moved")
    expected = (run / "metrics.json").read_bytes()
    (run / "metrics.json").unlink()
    assert call("train", f"resume={run}") == 0
    assert (run / "metrics.json").read_bytes() == expected


def test_checkpoints_with_custom_names_are_found(
    root: Path, here: Path, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    run = here / "run"
    filename = 'callbacks.checkpoint.filename="epoch_{epoch:03d}"'
    assert call("train", *small_run(root, run, "trainer.max_epochs=3", filename)) == 0
    assert {path.name for path in (run / "checkpoints").glob("epoch*.ckpt")} == {
        f"epoch_{best_step(run) // 5 - 1:03d}.ckpt"
    }
    assert_best(run, best_step(run), call, here, capfd)


@pytest.mark.parametrize("change", ["callbacks.checkpoint.save_top_k=2", "callbacks.checkpoint.filename=mine"])
def test_changed_file_names_on_resume(
    finished: Path, here: Path, call: Call, capfd: pytest.CaptureFixture[str], change: str
) -> None:
    run = copied(finished, here / "run")
    assert call("train", f"resume={run}", "trainer.max_epochs=4", change) == 0
    first = best_step(finished)
    found = {step: score for step, score in scores(run).items() if step == first or step > 10}
    expected = sorted(found, key=lambda step: (-found[step], step))
    kept = expected[:2] if "top_k" in change else expected[:1]
    files = [
        file for file in (run / "checkpoints").glob("*.ckpt") if file.name != "last.ckpt" and not file.is_symlink()
    ]
    assert sorted(map(step_of, files)) == sorted(kept)
    assert_best(run, expected[0], call, here, capfd)


@pytest.mark.parametrize(("monitor", "mode"), [("val/mean/mrr@10", "max"), ("val/mean/recall@5", "min")])
def test_changed_monitor_on_resume(
    finished: Path, here: Path, call: Call, capfd: pytest.CaptureFixture[str], monitor: str, mode: str
) -> None:
    run = copied(finished, here / "run")
    first = step_of(run / "checkpoints" / "best.ckpt")  # the only checkpoint that was kept
    changes = [f"callbacks.checkpoint.monitor={monitor}", f"callbacks.checkpoint.mode={mode}"]
    assert call("train", f"resume={run}", "trainer.max_epochs=4", *changes) == 0
    found = {step: value for step, value in scores(run, monitor).items() if step == first or step > 10}
    expected = sorted(found, key=lambda step: (-found[step] if mode == "max" else found[step], step))[0]
    assert_best(run, expected, call, here, capfd)


@pytest.mark.parametrize("damage", ["stale", "missing", "temporary", "orphan"])
def test_resume_repairs_weights_files(finished: Path, here: Path, call: Call, damage: str) -> None:
    run = copied(finished, here / "run")
    (run / "metrics.json").unlink()
    folder = run / "checkpoints"
    names = {path.name for path in folder.iterdir()}
    best = folder / "best.safetensors"
    if damage == "stale":  # killed after best.ckpt was renamed: the weights are those of an earlier step
        earlier = {name: tensor + 1 for name, tensor in load_file(best).items()}
        save_file(earlier, best, {"format": "pt", "checkpoint": "best.ckpt", "step": "1", "epoch": "0"})
    elif damage == "missing":
        best.unlink()
    elif damage == "temporary":
        for name in (".tmpAb3xYz", ".best.ckpt.host.123.0123abcd", ".last.safetensors.99"):
            (folder / name).write_bytes(b"half")
    else:
        shutil.copy(best, folder / "best_step_00000003.safetensors")
    assert call("train", f"resume={run}") == 0
    assert {path.name for path in folder.iterdir()} == names
    saved = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, saved[f"retriever.{name}"]) for name, tensor in load_file(best).items())


def test_run_without_scores_uses_the_last_checkpoint(
    finished: Path, here: Path, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    run = copied(finished, here / "run")
    (run / "checkpoints" / "best.ckpt").unlink()
    assert call("export", f"checkpoint={run}", f"output={here / 'exported'}") == 0
    assert "last.ckpt, step 10 (last checkpoint: no checkpoint was scored)" in "".join(capfd.readouterr())
