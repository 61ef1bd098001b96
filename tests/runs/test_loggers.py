"""Loggers of new and resumed runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import OmegaConf
from rich.table import Table

from ret_lightning.runs.loggers import Resumed, WandbStep, build_loggers, log_tables, record_wandb_run


def config(folder: Path) -> OmegaConf:
    csv = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(folder), "name": "csv", "version": ""}
    return OmegaConf.create({"logger": {"csv": {**csv, "flush_logs_every_n_steps": 1}, "none": None}})


def test_resumed_csv_waits_for_commit(tmp_path: Path) -> None:
    (logger,) = build_loggers(config(tmp_path), tmp_path, None)
    for step in range(5):
        logger.log_metrics({"loss": 10.0 - step}, step)
    resumed = Resumed(3, None, [])
    (logger,) = build_loggers(config(tmp_path), tmp_path, resumed)
    logger.log_metrics({"loss": 1.0}, 3)
    assert len(pandas.read_csv(tmp_path / "csv" / "metrics.csv")) == 5
    for call in resumed.on_commit:
        call()
    assert pandas.read_csv(tmp_path / "csv" / "metrics.csv")["loss"].tolist() == [10.0, 9.0, 8.0, 1.0]


def test_new_run_overwrites_the_csv_file(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        (logger,) = build_loggers(config(tmp_path), tmp_path, None)
        logger.log_metrics({"loss": value}, 0)
    assert pandas.read_csv(tmp_path / "csv" / "metrics.csv")["loss"].tolist() == [2.0]


def test_wandb_resumes_the_same_run(tmp_path: Path, monkeypatch) -> None:
    made = []

    class Stub:
        def __init__(self, **options: object) -> None:
            made.append(options)
            self.experiment = type("Run", (), {"id": "abc123", "offline": True})()

    monkeypatch.setattr("ret_lightning.runs.loggers.WandbLogger", Stub)
    monkeypatch.setattr("ret_lightning.runs.loggers.build", lambda node, **more: Stub(project=node["project"], **more))
    node = {"wandb": {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "p"}}
    settings = OmegaConf.create({"logger": node, "sweep": None})
    record_wandb_run(build_loggers(settings, tmp_path, None), tmp_path)
    build_loggers(settings, tmp_path, Resumed(5, None))
    named = {"project": "p", "name": tmp_path.name}
    assert made == [named, {**named, "id": "abc123", "resume": "allow"}]
    made.clear()
    build_loggers(OmegaConf.create({"logger": node, "sweep": "gate+seed"}), tmp_path / "gate=lstm", None)
    assert made == [{"project": "p", "name": "gate=lstm", "group": "gate+seed"}]


@pytest.mark.parametrize("variable", [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "True")])
def test_environment_disables_wandb(tmp_path: Path, monkeypatch, variable: tuple[str, str]) -> None:
    monkeypatch.setenv(*variable)
    settings = config(tmp_path)
    settings.logger.wandb = {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "p"}
    assert [type(logger).__name__ for logger in build_loggers(settings, tmp_path, None)] == ["CSVLogger"]


class Run:
    """A W&B run that records logged rows."""

    def __init__(self, offline: bool, step: int = 0) -> None:
        self.id, self.offline, self.step = "abc123", offline, step
        self.logged: list[tuple[dict, int, bool]] = []

    def log(self, row: dict, step: int, commit: bool) -> None:
        self.logged.append((row, step, commit))


class Stub:
    """A W&B logger with a run."""

    def __init__(self, run: Run) -> None:
        self.experiment = run


def fitting(run: Run, fn: TrainerFn = TrainerFn.FITTING) -> SimpleNamespace:
    return SimpleNamespace(is_global_zero=True, loggers=[Stub(run)], state=SimpleNamespace(fn=fn))


def test_offline_wandb_steps_continue(monkeypatch) -> None:
    monkeypatch.setattr("ret_lightning.runs.loggers.WandbLogger", Stub)
    checkpoint: dict = {}
    WandbStep().on_save_checkpoint(fitting(Run(True, 70)), None, checkpoint)
    resumed, online, tested = Run(True), Run(False), Run(True)
    WandbStep().on_load_checkpoint(fitting(resumed), None, checkpoint)
    ((row, step, commit),) = resumed.logged
    assert (row, commit) == ({}, False)
    assert step > 70
    WandbStep().on_load_checkpoint(fitting(online), None, checkpoint)  # the server continues its count
    WandbStep().on_load_checkpoint(fitting(tested, TrainerFn.TESTING), None, checkpoint)
    assert online.logged == tested.logged == []


def test_parts_of_an_offline_run_are_reported(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("ret_lightning.runs.loggers.WandbLogger", Stub)
    caplog.set_level("INFO")
    for part in range(2):
        (tmp_path / f"wandb/offline-run-2026_{part}-abc123").mkdir(parents=True)
        record_wandb_run([Stub(Run(True))], tmp_path)
        assert len(caplog.messages) == part
    assert f"wandb sync --include-synced {tmp_path}/wandb/offline-run-*-abc123" in caplog.messages[0]


@pytest.mark.parametrize("is_new", [False, True])
def test_abandoned_resume_restores_the_wandb_folder(tmp_path: Path, monkeypatch, is_new: bool) -> None:
    folder = tmp_path / "wandb"

    def start(name: str) -> None:
        (folder / name).mkdir(parents=True)
        (folder / name / "run.wandb").touch()
        (folder / "latest-run").unlink(missing_ok=True)
        (folder / "latest-run").symlink_to(name)

    if not is_new:
        start("offline-run-1")
    monkeypatch.setattr("ret_lightning.runs.loggers.build", lambda node, **more: object())
    node = {"wandb": {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "p"}}
    resumed = Resumed(5, None)
    build_loggers(OmegaConf.create({"logger": node, "sweep": None}), tmp_path, resumed)
    start("offline-run-2")
    (folder / "artifacts").mkdir()
    for call in resumed.on_abandon:
        call()
    assert folder.exists() is not is_new
    if not is_new:
        assert {path.name for path in folder.iterdir()} == {"offline-run-1", "latest-run"}
        assert (folder / "latest-run" / "run.wandb").exists()


@pytest.mark.parametrize("below", [True, False])
def test_abandoned_resume_keeps_other_folders(tmp_path: Path, below: bool) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    parent = run if below else tmp_path
    node = {
        "_target_": "lightning.pytorch.loggers.TensorBoardLogger",
        "save_dir": str(parent),
        "name": "t",
        "version": "",
    }
    resumed = Resumed(5, None)
    build_loggers(OmegaConf.create({"logger": {"tensorboard": node}, "sweep": None}), run, resumed)
    (parent / "t").mkdir(parents=True)
    (parent / "t" / "events").touch()
    for call in resumed.on_abandon:
        call()
    assert (parent / "t" / "events").exists() is not below


def test_final_tables_are_logged_to_wandb(monkeypatch) -> None:
    logged = []

    class Stub:
        def log_table(self, key: str, columns: list[str], data: list[list[str]]) -> None:
            logged.append((key, columns, data))

    monkeypatch.setattr("ret_lightning.runs.loggers.WandbLogger", Stub)
    table = Table("subset", "wit\nR@10", title="Recall, test")
    table.add_column("interval")
    table.add_row("wit", "*0.5", "0.4 to 0.6")
    table.add_row("mean", "0.25", "")
    table.add_row("okvqa", "", "")
    log_tables([Stub()], [table])
    rows = [["wit", 0.5, "0.4 to 0.6"], ["mean", 0.25, ""], ["okvqa", None, ""]]
    assert logged == [("summary/Recall, test", ["subset", "wit R@10", "interval"], rows)]


def test_unset_options_are_not_passed_to_wandb(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    node = {"_target_": "lightning.pytorch.loggers.WandbLogger", "offline": True, "save_dir": str(tmp_path)}
    settings = OmegaConf.create({"logger": {"wandb": node}, "sweep": None})
    (logger,) = build_loggers(settings, tmp_path, None)
    assert "anonymous" not in logger._wandb_init  # W&B warns about this option
