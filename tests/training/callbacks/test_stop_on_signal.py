"""Ranks that agree on a signal, and asking SLURM to queue a job again.

What signals do to a whole run is tried in test_interrupted_runs.py.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
import torch

from ret_lightning.errors import Stopped
from ret_lightning.training.callbacks.stop_on_signal import StopOnSignal, requeue


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)


class Scontrol:
    def __init__(self, code: int = 0, error: OSError | None = None) -> None:
        self.code, self.error = code, error
        self.calls: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> CompletedProcess[str]:
        self.calls.append(command)
        if self.error:
            raise self.error
        return CompletedProcess(command, self.code, "", "Invalid job id\n")


def test_a_job_and_a_task_of_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Scontrol()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    requeue(run)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "16")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue(run)
    assert run.calls == [["scontrol", "requeue", "17"], ["scontrol", "requeue", "16_3"]]


def test_what_goes_wrong_is_told_and_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Scontrol()
    requeue(run)
    assert run.calls == []
    assert "this is no SLURM job" in caplog.text
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    requeue(Scontrol(code=1))
    assert "scontrol requeue 17 failed: Invalid job id" in caplog.text
    requeue(Scontrol(error=FileNotFoundError(2, "No such file or directory")))
    assert "scontrol cannot be run (No such file or directory)" in caplog.text


# Batches of each rank, of two loaders; who is sent a signal, and after which of its batches.
EVALUATIONS = [
    ([(3, 2), (1, 1), (2, 1)], None),
    ([(3, 2), (1, 1), (2, 1)], (0, 4)),  # the others are done by then
    ([(3, 2), (1, 1), (2, 1)], (1, 1)),
    ([(3, 2), (1, 1), (2, 1)], (1, 2)),  # its last one
    ([(0, 1), (4, 0), (1, 3)], (2, 4)),
]


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/barrier", rank=rank, world_size=3)
    done = []
    for batches, sent in EVALUATIONS:
        callback = StopOnSignal()
        trainer = SimpleNamespace(world_size=3, num_test_batches=list(batches[rank]))
        callback.on_test_start(trainer, None)
        count = 0
        try:
            for count in range(1, sum(batches[rank]) + 1):
                if (rank, count) == sent:
                    os.kill(os.getpid(), signal.SIGUSR1)
                callback.on_test_batch_end(trainer, None, None, None, 0)
            done.append(("whole", count))
        except Stopped as stopped:
            done.append((str(stopped), count))
        torch.distributed.barrier()
    torch.save(done, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_ranks_stop_in_an_evaluation_of_which_each_has_another_number_of_batches(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=3)
    found = list(zip(*(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(3)), strict=True))
    stopped = "stopped by SIGUSR1 while testing [stopped-while-testing]"
    assert found == [
        (("whole", 5), ("whole", 2), ("whole", 3)),
        ((stopped, 4), (stopped, 2), (stopped, 3)),
        ((stopped, 1), (stopped, 1), (stopped, 1)),
        ((stopped, 2), (stopped, 2), (stopped, 2)),
        ((stopped, 1), (stopped, 4), (stopped, 4)),
    ]
