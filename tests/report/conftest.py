"""Session fixtures: six runs of three variants, and their report."""

from __future__ import annotations

from pathlib import Path

import pytest

from ret_lightning.report.report import write_report
from tests.support.m2kr_folder import write_folder
from tests.support.report_runs import CLEAN, SUBSETS, make_run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("corpus") / "m2kr", subsets=SUBSETS)


@pytest.fixture(scope="session")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    for gate, skill in (("lstm", 0.3), ("no_forget", 0.8), ("none", 0.5)):
        for seed in (1, 2):
            code = [{**CLEAN, "dirty": gate == "none"}]
            make_run(folder / f"{gate}_{seed}", f"gate={gate}", seed=seed, root=corpus, skill=skill, code=code)
    make_run(folder / "gone", finished=False, root=corpus)
    return folder


@pytest.fixture(scope="session")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "report"
    write_report(runs, folder, baseline="gate=no_forget")
    return folder
