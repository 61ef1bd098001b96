"""ret-train resume=... with another number of ranks, stopped in the middle of an epoch."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pandas
import pytest

from tests.support.m2kr_folder import number_questions, write_folder
from tests.support.recording_callbacks import course, rows_by_epoch
from tests.support.small_runs import m2kr, ret_train

pytestmark = pytest.mark.slow

SPY = "+callbacks.course={_target_:tests.support.recording_callbacks.Course,folder:${output_dir}}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return number_questions(write_folder(tmp_path_factory.mktemp("corpus") / "m2kr", training_rows=41))


# Ranks of each part and the optimizer step after which it is stopped; batches of 4 per rank. The last part starts after 40 of
# the 41 rows, so its ranks only validate in the first epoch, and drop a row of the second.
LEGS = {"indexed": [(2, 3), (1, 7), (2, 0)], "streaming": [(1, 10), (2, 0)]}


@pytest.mark.parametrize("reading", LEGS)
def test_rows_and_validations_are_not_repeated(root: Path, tmp_path: Path, reading: str) -> None:
    folder = tmp_path / "run"
    options = m2kr(
        root, "trainer=ddp_cpu", "data.batch_size=4", f"data.reading={reading}", "scheduler.horizon_steps=20",
        "data.validation=test",
        "test_with=none", SPY, f"output_dir={folder}",
    )  # fmt: skip
    done = []
    for ranks, stop in LEGS[reading]:
        environment = {"RET_LIGHTNING_TARGETS": "tests", "STOP_AT": str(stop)}
        done.append(ret_train(*options, f"trainer.devices={ranks}", cwd=tmp_path, environment=environment))
        options = [f"resume={folder}"]
        assert done[-1].returncode == (128 + signal.SIGTERM if stop else 0), done[-1].stderr

    found = rows_by_epoch(folder)
    assert found.keys() == {0, 1}
    assert [set(counts.values()) for counts in found.values()] == [{1}, {1}]
    assert [len(counts) for counts in found.values()] == [40, 40]
    assert Counter(e["epoch"] for e in course(folder) if "validation" in e) == {0: 2, 1: 2}  # once on each of two ranks
    lines = [
        line for leg in done for line in (leg.stdout + leg.stderr).splitlines() if "with a global batch of" in line
    ]
    assert len(lines) == len(done) - 1
    assert "with a global batch of 8 rows (2 ranks x 4), previously 4 rows (1 rank x 4)" in lines[-1]

    logged = pandas.read_csv(folder / "csv" / "metrics.csv")
    assert logged["train/loss"].dropna().size == LEGS[reading][-2][1] + 5
    assert logged["val/mean/recall@5"].dropna().size == 2
    shares = logged.filter(like="mixture/").dropna(how="all")
    assert shares.sum(axis=1).tolist() == pytest.approx([1.0] * len(shares))
