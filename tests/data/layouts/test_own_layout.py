"""Tests of a user-defined layout, with its own file names and fields, through the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from ret_lightning.evaluation.published_results import select_main_metrics
from tests.support.m2kr_folder import TRAIN, read, write_folder, write_lines
from tests.support.small_runs import small_run

LAYOUT = """
from dataclasses import dataclass
from pathlib import Path

from ret_lightning.data import Layout, RowParser
from ret_lightning.data.layouts.base import PublishedResults
from ret_lightning.data.readers.fields import RowFields
from ret_lightning.data.readers.row_files import RowFiles

NAMES = {
    "qid": "data_id", "ask": "question", "photo": "image_path", "doc": "passage_id", "topic": "subset",
    "body": "passage_text", "figure": "passage_image_path", "reply": "answer",
}


class MuseumRows(RowParser):
    def fields(self, content, location):
        row = super().fields(content, location)
        return RowFields({NAMES.get(name, name): value for name, value in row.values.items()}, row.location)


@dataclass
class MuseumLayout(Layout):
    root: Path
    images: str = "photos"

    parser = MuseumRows()
    evaluated_subsets = ("vases", "coins")
    published = PublishedResults("Museum", (("vases", "recall@3"),), {"someone": (0.5,)})

    def __post_init__(self):
        self.root = Path(self.root)

    def training_files(self):
        return RowFiles([self.root / "pairs.jsonl"])

    def query_files(self, subset, split):
        return RowFiles([self.root / f"ask-{subset}-{split}.jsonl"])

    def passage_files(self, subset):
        return RowFiles([self.root / f"docs-{subset}.jsonl"])

    def subsets(self):
        return [name for name in self.evaluated_subsets if (self.root / f"docs-{name}.jsonl").is_file()]
"""
CONFIG = """
defaults: [_common, _self_]
_target_: ret_lightning.data.RetrievalDataModule
layout:
  _target_: tests_data_museum.MuseumLayout
  root: ???
"""
FIELDS = {
    "data_id": "qid", "question": "ask", "image_path": "photo", "passage_id": "doc", "subset": "topic",
    "passage_text": "body", "passage_image_path": "figure", "answer": "reply",
}  # fmt: skip
SUBSETS = {"wit": "vases", "okvqa": "coins"}


def renamed(rows: list[dict]) -> list[dict]:
    return [{FIELDS.get(name, name): value for name, value in row.items()} for row in rows]


@pytest.fixture
def museum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """Create a corpus in the layout of ReT-M2KR, the same corpus in the custom layout, and a config folder."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "tests_data_museum.py").write_text(LAYOUT)
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "museum.yaml").write_text(CONFIG)
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.setenv(OWN_PACKAGES, "tests_data_museum")
    m2kr, own = write_folder(tmp_path / "m2kr", subsets=list(SUBSETS)), tmp_path / "museum"
    training = [row | {"subset": SUBSETS[row["data_id"].split("_")[0].lower()]} for row in read(m2kr / TRAIN)]
    write_lines(m2kr / TRAIN, training)
    write_lines(own / "pairs.jsonl", renamed(training))
    jsonl = m2kr / "jsonl/m2kr"
    for name, subset in SUBSETS.items():
        for file, copy, ours in (
            ("test/{}_test.jsonl", "ask-{}-test.jsonl", "test/{}_test.jsonl"),
            ("passages/{}_passages_test.jsonl", "docs-{}.jsonl", "passages/{}_passages_test.jsonl"),
        ):
            rows = read(jsonl / file.format(name))
            write_lines(own / copy.format(subset), renamed(rows))
            (jsonl / file.format(name)).rename(jsonl / ours.format(subset))
    (own / "photos").symlink_to(m2kr / "images/m2kr/images")
    return m2kr, own, tmp_path / "conf"


@pytest.mark.slow
@pytest.mark.parametrize("reading", ["indexed", "streaming"])
def test_custom_layout_metrics_equal_m2kr(
    call: Callable[..., int], museum: tuple[Path, Path, Path], tmp_path: Path, reading: str
) -> None:
    m2kr, own, configs = museum
    metrics = []
    options = [
        f"data.reading={reading}",
        "data.validation=holdout",
        "trainer.max_steps=3",
        "data.weights={vases:2,coins:1}",
    ]
    if reading == "streaming":
        options.append("scheduler.horizon_steps=9")
    for name, root in (("m2kr", m2kr), ("museum", own)):
        where = [f"data={name}", f"data.root={m2kr}" if name == "m2kr" else f"data.layout.root={own}"]
        run = tmp_path / f"{name}-run"
        shared = [
            option for option in small_run(root, run, *options, "evaluation.recall_at=[1,3,5]") if "data=" not in option
        ]
        shared = [option for option in shared if not option.startswith("data.root=")]
        assert call("train", "--config-dir", configs, *where, *shared, "data.subsets=[vases,coins]") == 0
        metrics.append(json.loads((run / "metrics.json").read_text()))
        if reading == "streaming":
            continue
        evaluated = tmp_path / f"{name}-evaluated"
        assert call(
            "evaluate", "--config-dir", configs, *where, f"checkpoint={run}", f"output_dir={evaluated}",
            "data.num_workers=0", "trainer.enable_progress_bar=false", "evaluation.recall_at=[1,3,5]",
            "data.subsets=[vases,coins]",
        ) == 0  # fmt: skip
        assert json.loads((evaluated / "metrics.json").read_text()) == metrics[-1]
    m2kr_metrics, museum_metrics = metrics
    main = {name for name in m2kr_metrics if "main_" in name}
    assert {n: v for n, v in m2kr_metrics.items() if n not in main} == {
        n: v for n, v in museum_metrics.items() if n not in main
    }
    assert select_main_metrics("vases", ["recall@3", "recall@5"]) == ["recall@3"]  # the published metric


def test_check_reports_bad_row_of_custom_layout(
    call: Callable[..., int], museum: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, own, configs = museum
    options = ["--config-dir", configs, "data=museum", f"data.layout.root={own}", "workers=1", "report=report.json"]
    assert call("check", *options) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["rows"] == 40 + 2 * 24
    rows = read(own / "ask-coins-test.jsonl")
    write_lines(own / "ask-coins-test.jsonl", [*rows, {"qid": 1}])
    capsys.readouterr()
    assert call("check", *options) == 1
    assert f"{own}/ask-coins-test.jsonl:13: field passage_id is missing" in capsys.readouterr().out
