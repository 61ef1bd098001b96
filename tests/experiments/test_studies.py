"""Studies: configs compose, READMEs are complete, and tables contain all variants and seeds."""

from __future__ import annotations

import csv
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import yaml

from tests.support.paths import EXPERIMENTS

STUDIES = sorted(file.parent.name for file in EXPERIMENTS.glob("*/study.yaml"))


def params(study: str) -> dict[str, list[str]]:
    config = yaml.safe_load((EXPERIMENTS / study / "study.yaml").read_text())
    return {key: str(value).split(",") for key, value in config["hydra"]["sweeper"]["params"].items()}


def test_studies_exist() -> None:
    assert {"backbones", "gates", "late_interaction", "recurrence", "sharing", "tokens"} <= set(STUDIES)


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize(("command", "name"), [("train", "study"), ("report", "comparison")])
def test_configs_compose(study: str, command: str, name: str, tmp_path: Path) -> None:
    options = ["--config-dir", str(EXPERIMENTS / study), "--config-name", name, "--cfg", "job"]
    done = subprocess.run(
        [sys.executable, "-m", f"ret_lightning.commands.{command}", *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"runs/studies/{study}" in done.stdout


@pytest.mark.parametrize("study", STUDIES)
def test_table_contains_swept_variants(study: str) -> None:
    swept = params(study)
    seeds = swept.pop("seed")
    assert len(seeds) >= 3
    rows = list(csv.DictReader((EXPERIMENTS / study / "results.csv").open(encoding="utf-8")))
    assert len(rows) == prod(map(len, swept.values()))
    assert all(row["seeds"].split() == seeds for row in rows)
    assert all("uncommitted" not in row["code"] for row in rows)
    text = (EXPERIMENTS / study / "README.md").read_text(encoding="utf-8")
    for part in ("**Question.**", f"make study NAME={study}", "**Result", "**Conclusion.**", "(results.png)"):
        assert part in text
    for row in rows:  # the README's table is the report's
        assert f"{float(row['mean']):.3f}" in text
