"""What a resumed run's logs keep."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest
from omegaconf import OmegaConf
from rich.table import Table

from ret_lightning.training.loggers import Resumed, build_loggers, log_tables, record_wandb_run


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


def test_a_new_run_begins_its_file_anew(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        (logger,) = build_loggers(config(tmp_path), tmp_path, None)
        logger.log_metrics({"loss": value}, 0)
    assert pandas.read_csv(tmp_path / "csv" / "metrics.csv")["loss"].tolist() == [2.0]


def test_wandb_goes_on_with_the_same_run(tmp_path: Path, monkeypatch) -> None:
    made = []

    class Stub:
        def __init__(self, **options: object) -> None:
            made.append(options)
            self.experiment = type("Run", (), {"id": "abc123"})()

    monkeypatch.setattr("ret_lightning.training.loggers.WandbLogger", Stub)
    monkeypatch.setattr(
        "ret_lightning.training.loggers.build", lambda node, **more: Stub(project=node["project"], **more)
    )
    node = {"wandb": {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "p"}}
    settings = OmegaConf.create({"logger": node, "sweep": None})
    record_wandb_run(build_loggers(settings, tmp_path, None), tmp_path)
    build_loggers(settings, tmp_path, Resumed(5, None, []))
    named = {"project": "p", "name": tmp_path.name}
    assert made == [named, {**named, "id": "abc123", "resume": "allow"}]
    made.clear()
    build_loggers(OmegaConf.create({"logger": node, "sweep": "gate+seed"}), tmp_path / "gate=lstm", None)
    assert made == [{"project": "p", "name": "gate=lstm", "group": "gate+seed"}]


def test_the_final_tables_go_to_wandb(monkeypatch) -> None:
    logged = []

    class Stub:
        def log_table(self, key: str, columns: list[str], data: list[list[str]]) -> None:
            logged.append((key, columns, data))

    monkeypatch.setattr("ret_lightning.training.loggers.WandbLogger", Stub)
    table = Table("subset", "wit\nR@10", title="Recall, test")
    table.add_column("interval")
    table.add_row("wit", "*0.5", "0.4 to 0.6")
    table.add_row("mean", "0.25", "")
    table.add_row("okvqa", "", "")
    log_tables([Stub()], [table])
    rows = [["wit", 0.5, "0.4 to 0.6"], ["mean", 0.25, ""], ["okvqa", None, ""]]
    assert logged == [("summary/Recall, test", ["subset", "wit R@10", "interval"], rows)]


def test_wandb_is_not_told_what_nobody_chose(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    node = {"_target_": "lightning.pytorch.loggers.WandbLogger", "offline": True, "save_dir": str(tmp_path)}
    settings = OmegaConf.create({"logger": {"wandb": node}, "sweep": None})
    (logger,) = build_loggers(settings, tmp_path, None)
    assert "anonymous" not in logger._wandb_init  # of which W&B would warn
