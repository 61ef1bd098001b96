"""A run on a SLURM cluster: two tasks as ranks, signalled before the time limit, requeued and resumed."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas
import pytest

from tests.support import slurm_cluster
from tests.support.m2kr_folder import write_folder
from tests.support.paths import ROOT
from tests.support.small_runs import small_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm_cluster.Cluster]:
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        made = slurm_cluster.Cluster(Path(folder))
        yield made
        made.stop()


def last_step(run: Path) -> int:
    """Return the last optimizer step in the CSV file, counted from 0; -1 if there is none."""
    file = run / "csv" / "metrics.csv"
    try:
        return int(pandas.read_csv(file)["step"].max())
    except (OSError, KeyError, ValueError, pandas.errors.ParserError, pandas.errors.EmptyDataError):
        return -1


def test_signalled_job_is_requeued_and_resumes(cluster: slurm_cluster.Cluster, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "job.log"
    options = small_run(
        write_folder(tmp_path / "m2kr"), run, "trainer=slurm", "trainer.accelerator=cpu", "trainer.devices=2",
        "data.batch_size=4", "trainer.max_epochs=12", "trainer.check_val_every_n_epoch=12", "resume=auto",
        "callbacks.stop_on_signal.requeue=true", "callbacks.last.every_n_steps=1",
    )  # fmt: skip
    command = shlex.join([sys.executable, "-m", "ret_lightning.commands.train", *options])
    job = cluster.submit(
        f"#!/bin/bash\nexport PYTHONPATH={ROOT}\nsrun --unbuffered {command}\n", tmp_path,
        "--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=10", "--requeue", "--open-mode=append",
        f"--output={log}",
    )  # fmt: skip

    def details() -> str:
        return (log.read_text()[-3000:] if log.exists() else "") + cluster.logs()

    def reached(it: Callable[[], bool]) -> Callable[[], bool]:
        def check() -> bool:
            assert cluster.state(job) not in ("FAILED", "CANCELLED", "NODE_FAIL"), details()
            return it()

        return check

    slurm_cluster.wait_until(reached(lambda: last_step(run) >= 2), "the job did not begin to train", details)
    cluster.run("scancel", "--signal=USR1", job)
    slurm_cluster.wait_until(reached(lambda: cluster.restarts(job) == 1), "the job was not queued again", details)
    slurm_cluster.wait_until(reached(lambda: cluster.state(job) == "COMPLETED"), "the job did not end", details)
    text = log.read_text()
    assert text.count("resuming from") == 1, text
    assert (run / "metrics.json").exists()
    steps = pandas.read_csv(run / "csv" / "metrics.csv").dropna(subset="train/loss")["step"].tolist()
    assert steps == list(range(len(steps)))  # each step once in both starts of the job
    step = int(text.partition("resuming from")[2].partition(", step ")[2].split()[0].rstrip("."))
    assert 3 <= step < len(steps)
