"""Commands report errors of a run in one line before they write anything."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.support.m2kr_folder import write_folder
from tests.support.small_runs import Trained, command, small_run

Call = Callable[..., int]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "m2kr")


@pytest.mark.parametrize("name", ["train", "evaluate"])
@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_gpu_trainers_without_gpu(call: Call, root: Path, tmp_path: Path, monkeypatch, capsys, name, trainer) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    options = {
        "train": small_run(root, tmp_path / "run"),
        "evaluate": [f"checkpoint={tmp_path}", f"data.root={root}", f"output_dir={tmp_path / 'run'}"],
    }
    assert call(name, *options[name], f"trainer={trainer}") == 2
    error = capsys.readouterr().err
    assert "[gpu-not-found]" in error
    assert "trainer=cpu" in error
    assert not (tmp_path / "run").exists()


def test_resume_of_a_missing_folder_writes_nothing(call: Call, tmp_path: Path, capsys) -> None:
    assert call("train", f"resume={tmp_path / 'nowhere'}") == 2
    assert "[resume-no-run]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "code"),
    [
        ("data.image_folder=nowhere", "image-folder-missing"),
        ("callbacks.checkpoint.monitor=val/kvqa/recall@5", "monitored-subset-not-validated"),
        ("trainer.limit_train_batches=0.1", "limit-leaves-no-batch"),
        ("trainer.limit_test_batches=0.01", "limit-leaves-no-batch"),
    ],
)
def test_train_refuses_before_it_trains(call: Call, root: Path, tmp_path: Path, capsys, option: str, code: str) -> None:
    assert call("train", *small_run(root, tmp_path / "run", option)) in (1, 2)
    assert f"[{code}]" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "code"),
    [
        ("data.image_folder=nowhere", "image-folder-missing"),
        ("trainer.limit_test_batches=0.01", "limit-leaves-no-batch"),
    ],
)
def test_evaluate_refuses_before_it_encodes(trained: Trained, call: Call, tmp_path, capsys, option, code) -> None:
    options = [f"checkpoint={trained.run}", f"data.root={trained.root}", "data.num_workers=0"]
    assert call("evaluate", *options, f"output_dir={tmp_path / 'evaluation'}", option) in (1, 2)
    assert f"[{code}]" in capsys.readouterr().err
    assert not (tmp_path / "evaluation" / "config.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("is_former", [False, True])
def test_evaluate_warns_of_training_rows(trained: Trained, call: Call, tmp_path, capsys, is_former: bool) -> None:
    """A run of a version without a holdout was trained on the rows that split=val holds out."""
    run = shutil.copytree(trained.run, tmp_path / "run")
    if is_former:
        for file in (run / "checkpoints").glob("*.ckpt"):
            checkpoint = torch.load(file, weights_only=True)
            del checkpoint["ret_lightning"]["config"]["data"]["holdout_rows"]
            torch.save(checkpoint, file)
    options = [
        f"checkpoint={run}",
        f"data.root={trained.root}",
        "data.num_workers=0",
        "trainer.enable_progress_bar=false",
    ]
    assert call("evaluate", *options, "split=val", f"output_dir={tmp_path / 'evaluation'}") == 0
    assert ("was probably trained on them" in capsys.readouterr().out) is is_former


@pytest.mark.slow
def test_run_with_relative_paths_resumes_from_another_folder(call: Call, root: Path, tmp_path: Path) -> None:
    options = [
        option for option in small_run(root, Path("runs/one"), "trainer.max_epochs=1") if "data.root" not in option
    ]
    assert call("train", *options, "data.root=m2kr") == 0
    run = tmp_path / "runs" / "one"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["root"] == str(root)
    (tmp_path / "elsewhere").mkdir()
    again = command("train", "resume=../runs/one", "trainer.max_epochs=2", cwd=tmp_path / "elsewhere")
    assert again.returncode == 0, again.stderr
