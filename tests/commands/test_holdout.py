"""Runs without validation files: the held-out validation rows, and their record in later commands."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
import yaml

from ret_lightning.retrieval import read_qrels
from tests.support.m2kr_folder import SUBSETS, write_folder
from tests.support.small_runs import finished_run, small_run

pytestmark = pytest.mark.slow  # each test trains for a few seconds

Call = Callable[..., int]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("corpus") / "m2kr", training_rows=48)


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch; tests copy it."""
    return finished_run(root, tmp_path_factory.mktemp("finished") / "run", "trainer.max_epochs=1")


def training_rows(root: Path) -> dict[str, list[str]]:
    """The passage ids of each training row by its id."""
    rows = map(json.loads, (root / "jsonl/m2kr/train/m2kr_up_train.jsonl").read_text().splitlines())
    listed = ((row["data_id"], row["passage_id"]) for row in rows)
    return {name: [*map(str, ids if isinstance(ids, list) else [ids])] for name, ids in listed}


def validated(folder: Path) -> dict[str, set[str]]:
    """The queries of each subset, from the files of an evaluation."""
    return {name: set(read_qrels(folder / "rankings" / f"{name}.qrels")) for name in SUBSETS}


def selected_on(run: Path) -> str:
    return json.loads((run / "origin.json").read_text())["selected_on"]


@pytest.mark.parametrize("reading", ["indexed", "streaming"])
def test_holdout_rows_are_not_trained_on(
    root: Path, tmp_path: Path, call: Call, capfd: pytest.CaptureFixture[str], reading: str
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    more = [f"data.reading={reading}", "trainer.max_epochs=1", "scheduler.horizon_steps=20", "data.batch_size=1"]
    assert call("train", *small_run(root, run, *more)) == 0
    log = "".join(capfd.readouterr())
    assert selected_on(run) == "holdout"
    assert "selected on held-out training rows" in " ".join(log.split())
    assert call("evaluate", f"checkpoint={run}", f"data.root={root}", "split=val", f"output_dir={out}") == 0
    rows, found = training_rows(root), validated(out)
    for name, ids in found.items():
        assert ids, name
        assert ids <= {row for row in rows if row.startswith(name.upper())}
        assert f"val/{name}: {len(ids)} queries" in log
    # One batch per row, except rows that share a passage with a validation row.
    held = {(name, passage) for name, ids in found.items() for row in ids for passage in rows[row]}
    apart = [r for r, ids in rows.items() if not held & {(r.split("_")[0].lower(), passage) for passage in ids}]
    logged = pandas.read_csv(run / "csv" / "metrics.csv")
    assert logged["train/loss"].dropna().size == len(apart)
    # ret-evaluate of the best checkpoint has the score of its validation during training.
    score = json.loads((out / "metrics.json").read_text())["mean/recall@5"]
    assert score == pytest.approx(logged["val/mean/recall@5"].max())


def test_tables_state_the_selection_queries(
    root: Path, finished: Path, tmp_path: Path, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    words = "selected on held-out training rows"
    runs = tmp_path / "runs"
    shutil.copytree(finished, runs / "one")
    assert call("evaluate", f"checkpoint={runs / 'one'}", f"data.root={root}", f"output_dir={tmp_path / 'out'}") == 0
    assert words in " ".join("".join(capfd.readouterr()).split())
    assert selected_on(tmp_path / "out") == "holdout"
    assert call("export", f"checkpoint={runs / 'one'}", f"output={tmp_path / 'model'}") == 0
    assert words in (tmp_path / "model" / "README.md").read_text()
    evaluated = tmp_path / "exported"
    assert call("evaluate", f"checkpoint={tmp_path / 'model'}", f"data.root={root}", f"output_dir={evaluated}") == 0
    assert selected_on(evaluated) == "holdout"
    assert call("report", f"runs={runs}", f"output={tmp_path / 'report'}") == 0
    assert words in (tmp_path / "report" / "results.md").read_text()
    with (tmp_path / "report" / "results.csv").open() as file:
        assert "holdout" in next(csv.DictReader(file)).values()


def test_run_of_an_earlier_version_keeps_its_validation(root: Path, finished: Path, tmp_path: Path, call: Call) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("holdout_rows", "holdout_fraction"):
        del config["data"][name]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert call("train", f"resume={run}", "trainer.max_epochs=2") == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["validation"] == "val_or_test"
    assert selected_on(run) == "test"
    logged = pandas.read_csv(run / "csv" / "metrics.csv").dropna(subset="val/mean/recall@5").iloc[-1]
    tested = json.loads((run / "metrics.json").read_text())
    if json.loads((run / "origin.json").read_text())["tested_step"] == logged["step"] + 1:
        assert tested["mean/recall@5"] == pytest.approx(logged["val/mean/recall@5"])


def test_missing_validation_files_are_refused(
    root: Path, tmp_path: Path, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("train", *small_run(root, tmp_path / "run", "data.validation=val")) != 0
    line = capfd.readouterr().err.splitlines()[-1]
    assert "_val.jsonl: " in line
    assert line.endswith("[missing-corpus-file]")
    assert not list((tmp_path / "run").rglob("*.ckpt"))
