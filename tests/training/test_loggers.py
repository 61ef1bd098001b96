"""What a resumed run's logs keep."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest
from omegaconf import OmegaConf
from rich.table import Table

from ret_lightning.training.loggers import build_loggers, log_tables, record_wandb_run


def config(folder: Path) -> OmegaConf:
    csv = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(folder), "name": "csv", "version": ""}
    return OmegaConf.create({"logger": {"csv": {**csv, "flush_logs_every_n_steps": 1}, "none": None}})


def test_rows_of_before_the_checkpoint_stay_and_later_ones_go(tmp_path: Path) -> None:
    (logger,) = build_loggers(config(tmp_path), tmp_path, None)
    for step in range(5):
        logger.log_metrics({"loss": 10.0 - step}, step)
    logger.log_metrics({"recall": 0.5}, 2)
    (logger,) = build_loggers(config(tmp_path), tmp_path, 3)
    logger.log_metrics({"loss": 1.0}, 3)
    logger.log_metrics({"norm": 2.0}, 4)  # a column that the file has not had
    rows = pandas.read_csv(tmp_path / "csv" / "metrics.csv")
    assert rows["step"].tolist() == [0, 1, 2, 2, 3, 4]
    assert rows["loss"].dropna().tolist() == [10.0, 9.0, 8.0, 1.0]
    assert rows["recall"].dropna().tolist() == [0.5]
    assert rows["norm"].dropna().tolist() == [2.0]


def test_rows_outlive_a_process_that_is_killed_while_it_puts_them_back(tmp_path: Path, monkeypatch) -> None:
    (logger,) = build_loggers(config(tmp_path), tmp_path, None)
    for step in range(3):
        logger.log_metrics({"loss": 10.0 - step}, step)

    def killed(self) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("lightning.fabric.loggers.csv_logs._ExperimentWriter.save", killed)
        with pytest.raises(KeyboardInterrupt):
            build_loggers(config(tmp_path), tmp_path, 2)
    assert not (tmp_path / "csv" / "metrics.csv").exists()
    build_loggers(config(tmp_path), tmp_path, 2)
    assert pandas.read_csv(tmp_path / "csv" / "metrics.csv")["loss"].tolist() == [10.0, 9.0]
    assert [path.name for path in (tmp_path / "csv").iterdir()] == ["metrics.csv"]


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
    build_loggers(settings, tmp_path, 5)
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
