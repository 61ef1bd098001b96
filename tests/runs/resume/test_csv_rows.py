"""CSV file of a resumed run: unchanged until the takeover, complete afterwards."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest
from lightning.pytorch.loggers import CSVLogger

from ret_lightning.runs.resume.csv_rows import resume_csv


def logger_in(folder: Path) -> CSVLogger:
    return CSVLogger(folder, name="csv", version="", flush_logs_every_n_steps=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Rows of steps 0 to 4, and one of a validation after step 2."""
    logger = logger_in(tmp_path)
    for step in range(5):
        logger.log_metrics({"loss": 10.0 - step}, step)
    logger.log_metrics({"recall": 0.5}, 2)
    return tmp_path / "csv" / "metrics.csv"


def test_rows_up_to_the_checkpoint_are_kept(file: Path, tmp_path: Path) -> None:
    logger = logger_in(tmp_path)
    rows = resume_csv(logger, 3, None)
    logger.log_metrics({"loss": 1.0}, 3)
    rows.release()
    logger.log_metrics({"norm": 2.0}, 4)  # a new column
    read = pandas.read_csv(file)
    assert read["step"].tolist() == [0, 1, 2, 2, 3, 4]
    assert read["loss"].dropna().tolist() == [10.0, 9.0, 8.0, 1.0]
    assert read["recall"].dropna().tolist() == [0.5]
    assert read["norm"].dropna().tolist() == [2.0]


def test_file_is_unchanged_until_release(file: Path, tmp_path: Path) -> None:
    before = file.read_bytes()
    logger = logger_in(tmp_path)
    resume_csv(logger, 3, None)
    logger.log_hyperparams({"seed": 1})
    for step in (3, 4):
        logger.log_metrics({"loss": 1.0}, step)
        logger.save()
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("lost", [True, False])
def test_row_lost_by_a_kill_is_logged(file: Path, tmp_path: Path, lost: bool) -> None:
    row = {"loss": 8.0, "step": 2}
    lines = file.read_text().splitlines(keepends=True)
    if lost:
        file.write_text("".join(line for line in lines if "8.0" not in line))
    resume_csv(logger_in(tmp_path), 3, row).release()
    read = pandas.read_csv(file)
    assert sorted(read["loss"].dropna()) == [8.0, 9.0, 10.0]


def test_torn_last_line_is_dropped(file: Path, tmp_path: Path) -> None:
    file.write_text(file.read_text() + '1.0,"2')
    resume_csv(logger_in(tmp_path), 3, None).release()
    assert pandas.read_csv(file)["step"].tolist() == [0, 1, 2, 2]


def test_missing_file_is_created(tmp_path: Path) -> None:
    logger = logger_in(tmp_path)
    rows = resume_csv(logger, 3, None)
    logger.log_metrics({"loss": 1.0}, 3)
    rows.release()
    assert pandas.read_csv(tmp_path / "csv" / "metrics.csv")["loss"].tolist() == [1.0]
