"""Agreement of ranks on a signal, and requeueing under SLURM.

The effect of signals on whole runs is tested in tests/runs/resume/test_interrupted_runs.py.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from ret_lightning.errors import Stopped
from ret_lightning.training.callbacks.stop_on_signal import StopOnSignal, requeue, stop_signals
from ret_lightning.training.checkpointing.last_checkpoint import LastCheckpoint
from tests.support.tiny_training import fit, make_module


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


def test_requeue_of_job_and_array_task(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Scontrol()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    requeue(run)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "16")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue(run)
    assert run.calls == [["scontrol", "requeue", "17"], ["scontrol", "requeue", "16_3"]]


def test_requeue_failure_is_logged_only(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    run = Scontrol()
    requeue(run)
    assert run.calls == []
    assert "not a SLURM job" in caplog.text
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    requeue(Scontrol(code=1))
    assert "scontrol requeue 17 failed: Invalid job id" in caplog.text
    requeue(Scontrol(error=FileNotFoundError(2, "No such file or directory")))
    assert "scontrol cannot be run (No such file or directory)" in caplog.text


# Batches of each rank in two loaders; the rank that receives a signal, and after which of its batches.
EVALUATIONS = [
    ([(3, 2), (1, 1), (2, 1)], None),
    ([(3, 2), (1, 1), (2, 1)], (0, 4)),  # the other ranks have finished
    ([(3, 2), (1, 1), (2, 1)], (1, 1)),
    ([(3, 2), (1, 1), (2, 1)], (1, 2)),  # its last batch
    ([(0, 1), (4, 0), (1, 3)], (2, 4)),
]


def _run_rank(rank: int, folder: str) -> None:
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
            done.append(("complete", count))
        except Stopped as stopped:
            done.append((str(stopped), count))
        torch.distributed.barrier()
    torch.save(done, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_with_unequal_batches_stop_together(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_run_rank, args=(str(tmp_path),), nprocs=3)
    found = list(zip(*(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(3)), strict=True))
    stopped = "stopped by SIGUSR1 while testing [stopped-while-testing]"
    assert found == [
        (("complete", 5), ("complete", 2), ("complete", 3)),
        ((stopped, 4), (stopped, 2), (stopped, 3)),
        ((stopped, 1), (stopped, 1), (stopped, 1)),
        ((stopped, 2), (stopped, 2), (stopped, 2)),
        ((stopped, 1), (stopped, 4), (stopped, 4)),
    ]


def test_missing_signals_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stop_signals() == [signal.SIGTERM, signal.SIGUSR1]
    monkeypatch.delattr(signal, "SIGUSR1")
    assert stop_signals() == [signal.SIGTERM]


class _Send(Callback):
    """Send a signal to this process after a batch."""

    def __init__(self, number: int, batch: int) -> None:
        self.number, self.batch = number, batch

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if index == self.batch:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("saved", [True, False])
def test_signal_stops_training_after_the_batch(root: Path, tmp_path: Path, number: signal.Signals, saved: bool) -> None:
    before = {each: signal.getsignal(each) for each in stop_signals()}
    callbacks = [_Send(number, batch=1), StopOnSignal()]
    if saved:
        callbacks.append(LastCheckpoint(tmp_path / "checkpoints"))
    try:
        with pytest.raises(Stopped) as caught:
            fit(root, make_module(), max_epochs=5, callbacks=callbacks, enable_checkpointing=saved)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    error = caught.value
    assert (error.code, error.signal, error.step, error.number) == ("stopped-while-training", number.name, 2, number)
    assert error.exit_code == 128 + number
    assert (f"saved in {tmp_path}/checkpoints/last.ckpt" in error.message) == saved
    assert (tmp_path / "checkpoints/last.ckpt").exists() == saved
