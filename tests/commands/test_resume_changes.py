"""Changes of a resumed run are applied or refused; a refusal or a failure does not change the folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
import torch
import yaml

from ret_lightning.runtime.lock import alone_in
from tests.support.m2kr_folder import write_folder
from tests.support.small_runs import finished_run, small_run

Call = Callable[..., int]
LOG = "ret-train.log"  # the only file that a failure may change


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("corpus") / "m2kr", training_rows=40)


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on a FAISS index; tests copy it."""
    options = ["trainer.max_epochs=2", "retrieval=faiss_ivf", "retrieval.nlist=2", "retrieval.nprobe=1"]
    return finished_run(root, tmp_path_factory.mktemp("finished") / "run", *options)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != LOG
    }


REFUSED = [
    "seed=2",
    "optimizer.lr=1e-5",
    "optimizer.weight_decay=0.5",
    "optimizer.betas=[0.8,0.9]",
    "backbone_learning_rate_scale=0.5",
    "scheduler.warmup_steps=7",
    "scheduler.floor=0.5",
    "trainer.precision=bf16-mixed",
    "trainer.gradient_clip_val=0.5",
    "trainer.accumulate_grad_batches=2",
    "trainer.limit_train_batches=2",
    "data.batch_size=4",
    "data.subsets=[wit]",
    "+data.repeat.wit=2",
    "loss.temperature=0.5",
    "model.num_tokens=8",
    "gate=none",
    "trainer=gpu",
]


@pytest.mark.slow  # the fixture trains
@pytest.mark.parametrize("override", REFUSED)
def test_optimization_settings_are_refused(
    run: Path, call: Call, capfd: pytest.CaptureFixture[str], override: str
) -> None:
    before = content(run)
    assert call("train", f"resume={run}", "trainer.max_epochs=4", override) == 2
    printed = capfd.readouterr().err
    assert "[resume-setting-fixed]" in printed
    assert override.lstrip("+").partition("=")[0] in printed
    assert "init_from" in printed
    assert content(run) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("trainer.max_epoch=4", "max_epochs"),
        ("optimizer.lrr=1", "lr"),
        ("retrieval.nprob=4", "nprobe"),
        ("logger=wandbb", "wandb"),
        ("trainer.max_epochs=four", "trainer.max_epochs"),
        ("trainer.max_epochs=3,4", "trainer.max_epochs"),
        ("experiment=demo", "experiment"),
    ],
)
def test_invalid_overrides_are_reported(
    run: Path, call: Call, capfd: pytest.CaptureFixture[str], override: str, hint: str
) -> None:
    before = content(run)
    assert call("train", f"resume={run}", override) == 2
    assert hint in capfd.readouterr().err
    assert content(run) == before


@pytest.mark.slow
def test_unchanged_values_are_no_change(run: Path, call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("train", f"resume={run}", "optimizer.lr=0.003", "seed=42") == 2
    assert "[resume-finished]" in capfd.readouterr().err


@pytest.mark.slow
def test_allowed_settings_are_applied(run: Path, root: Path, call: Call, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(root, tmp_path / "corpus"))
    changes = [
        "trainer.max_epochs=3", f"data.root={moved}", "data.on_bad_row=skip", "retrieval.nprobe=2", "logger=none",
        "data.num_workers=1", "evaluation.ranked=100", "callbacks.last.every_n_steps=2",
    ]  # fmt: skip
    assert call("train", f"resume={run}", *changes) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 3
    assert config["data"]["root"] == str(moved)
    assert config["retrieval"]["nprobe"] == config["evaluation"]["index"]["nprobe"] == 2
    assert config["logger"] == {}
    assert config["resume"] is None
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 15


@pytest.mark.slow
def test_extending_renames_the_earlier_results(run: Path, call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    metrics, intervals = ((run / name).read_bytes() for name in ("metrics.json", "intervals.json"))
    assert call("train", f"resume={run}", "trainer.max_epochs=4") == 0
    assert (run / "metrics.previous.json").read_bytes() == metrics
    assert (run / "intervals.previous.json").read_bytes() == intervals
    assert (run / "rankings.previous").is_dir()
    assert (run / "metrics.json").is_file()
    rows = pandas.read_csv(run / "csv" / "metrics.csv")
    assert sorted(rows["step"][rows["train/loss"].notna()]) == list(range(20))
    printed = "".join(capfd.readouterr())
    # The schedule of two epochs ended at 0; that of four epochs is at its middle.
    assert "learning rate at step 10: 0 before the resume, 0.00162 now" in printed
    assert "scheduler.horizon_steps=10" in printed


@pytest.mark.slow
def test_earlier_schedule_can_be_kept(run: Path, call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("train", f"resume={run}", "trainer.max_epochs=3", "scheduler.horizon_steps=10") == 0
    assert "before the resume" not in "".join(capfd.readouterr())
    rates = pandas.read_csv(run / "csv" / "metrics.csv").set_index("step")["train/learning_rate"].dropna()
    assert rates[rates.index >= 10].tolist() == [0.0] * 5


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def terminated(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "code", "text"),
    [(None, 1, "data.root"), (interrupted, 130, "interrupted"), (terminated, 143, "[stopped-by-sigterm]")],
)
@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_failure_before_the_start_changes_nothing(
    run: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    act: Callable[..., None] | None,
    code: int,
    text: str,
    state: str,
) -> None:
    if state == "unfinished":
        (run / "metrics.json").unlink()
    before = content(run)
    if act is not None:
        monkeypatch.setattr("ret_lightning.data.datamodule.RetrievalDataModule.train_dataloader", act)
    options = ["data.root=/nowhere"] if act is None else []
    assert call("train", f"resume={run}", "trainer.max_epochs=4", *options) == code
    assert text in capfd.readouterr().err
    after = content(run)
    if state == "unfinished":  # for reports
        after.pop("failure.json", None)
    assert after == before


@pytest.mark.slow
def test_relative_folder_is_found(run: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ret_lightning.commands.train._train", lambda config: ran.append(config.output_dir))
    (tmp_path / "deep").mkdir()
    for folder in ("run", "./run/", "deep/../run"):
        ran: list[str] = []
        assert call("train", f"resume={folder}", "trainer.max_epochs=4") == 0
        assert ran == [str(run)]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["resume", "new"])
@pytest.mark.parametrize("obstacle", ["finished", "unfinished", "running"])
def test_refused_command_writes_nothing(
    run: Path, root: Path, call: Call, capfd: pytest.CaptureFixture[str], command: str, obstacle: str
) -> None:
    if obstacle == "unfinished" and command == "resume":
        pytest.skip("an unfinished run can be resumed")
    if obstacle == "unfinished":
        (run / "metrics.json").unlink()
    before = content(run) | {LOG: (run / LOG).read_bytes()}
    options = [f"resume={run}"] if command == "resume" else small_run(root, run, "seed=5")
    if obstacle == "running":
        with alone_in(run):
            code = call("train", *options)
        expected = "folder-in-use"
    else:
        code = call("train", *options)
        expected = {"resume": "resume-finished", "new": f"folder-holds-{obstacle}-run"}[command]
    assert code != 0
    assert f"[{expected}]" in capfd.readouterr().err
    assert content(run) | {LOG: (run / LOG).read_bytes()} == before


def test_missing_folder_is_not_created(call: Call, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("train", f"resume={tmp_path / 'nowhere'}", "trainer.max_epochs=4") == 2
    assert "[resume-no-run]" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_new_attempt_after_kill_in_extension_resumes(run: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the first new checkpoint, the run is unfinished, with the new length and the earlier results."""
    with monkeypatch.context() as patched:
        patched.setattr("ret_lightning.evaluation.callback.RetrievalEvaluation.on_test_epoch_start", interrupted)
        assert call("train", f"resume={run}", "trainer.max_epochs=3") == 130
    assert not (run / "metrics.json").exists()
    assert (run / "metrics.previous.json").exists()
    assert call("train", f"resume={run}") == 0
    assert json.loads((run / "metrics.json").read_text())
