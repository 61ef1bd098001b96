"""Stop a run on SIGTERM or SIGUSR1, which SLURM sends before a time limit: save, stop, and optionally requeue the job."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from ret_lightning.errors import Stopped
from ret_lightning.training.checkpointing.last_checkpoint import LastCheckpoint

log = logging.getLogger(__name__)


def stop_signals() -> list[int]:
    """Return the signals that stop a run, of those that this system has: Windows has no SIGUSR1."""
    return [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopOnSignal(Callback):
    """Saves a checkpoint and stops all ranks together after the current optimizer step.

    The signal handler only records the signal. After every batch the ranks agree on whether any of them received one,
    by an all-reduce of one number over gloo, which does not synchronize with the GPU. In an evaluation, ranks may have
    different numbers of batches; a rank that finishes early takes part in the remaining all-reduces.

    A signal during a validation stops the validation, and a resumed run starts with that validation. If the state
    cannot be saved, as after the last batch of an epoch or between accumulated batches, the run continues to the next
    point at which it can.

    Args:
        requeue: whether to requeue the job under SLURM (`scontrol requeue`). The command line must then contain
            `resume=auto` and an explicit `output_dir`.
    """

    def __init__(self, requeue: bool = False) -> None:
        self.requeue = requeue
        self._signal = 0
        self._saved_for = 0
        self._group: Any = None
        self._batches_left = 0  # of the current evaluation, on this rank
        self._missing_batches = 0  # compared with the rank that has the most batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers; they replace Lightning's, which restores all handlers when the run ends."""
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                signal.signal(number, self._record_signal)
        if trainer.world_size > 1 and self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches of the validation."""
        if _is_within_fit(trainer):
            self._begin_evaluation(trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers and count the batches of the test."""
        self.on_train_start(trainer, pl_module)
        self._begin_evaluation(trainer.num_test_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save a checkpoint if a signal was received and the optimizer step is complete."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if progress.is_last_batch or trainer.fit_loop._should_accumulate():
            return  # a validation follows, or accumulated gradients would be lost
        self._saved_for = self._receive_signal()
        if self._saved_for:
            self._save(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop the run if it was saved after the previous batch; Lightning has logged its metrics by now."""
        if self._saved_for:
            self._stop(trainer, self._saved_for)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Save a checkpoint and stop the run if a signal was received.

        Raises:
            Stopped: on all ranks, if any rank received a signal.
        """
        if _is_within_fit(trainer) and (number := self._receive_in_evaluation()):
            self._save(trainer, rerun_validation=True)
            self._stop(trainer, number)

    def on_test_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Stop the test if a signal was received; nothing is saved.

        Raises:
            Stopped: on all ranks, if any rank received a signal.
        """
        if number := self._receive_in_evaluation():
            name = signal.Signals(number).name
            raise Stopped(f"stopped by {name} while testing", number, code="stopped-while-testing")

    def _begin_evaluation(self, batches: Sequence[int | float]) -> None:
        self._batches_left = int(sum(batches))
        self._missing_batches = self._max_over_ranks(self._batches_left) - self._batches_left

    def _receive_in_evaluation(self) -> int:
        """Return the signal that any rank received, or 0.

        Every rank takes part in as many all-reduces as the rank with the most batches.
        """
        self._batches_left -= 1
        times = 1 if self._batches_left else 1 + self._missing_batches
        return next((number for number in (self._receive_signal() for _ in range(times)) if number), 0)

    def _receive_signal(self) -> int:
        """Return the signal that any rank received, or 0."""
        return self._max_over_ranks(self._signal)

    def _max_over_ranks(self, number: int) -> int:
        """Return the maximum of a number over the ranks."""
        if self._group is None:
            return number
        found = torch.tensor([number])
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(found)

    def _save(self, trainer: Trainer, rerun_validation: bool = False) -> None:
        for callback in trainer.callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.save(trainer, rerun_validation)

    def _stop(self, trainer: Trainer, number: int) -> None:
        if trainer.is_global_zero and self.requeue:
            requeue(subprocess.run)
        saved = next((f"saved in {c.file}" for c in trainer.callbacks if isinstance(c, LastCheckpoint)), None)
        raise Stopped(
            f"stopped by {signal.Signals(number).name} at step {trainer.global_step}, "
            f"{saved or 'not saved: the run has no callbacks.last'}",
            number,
            code="stopped-while-training",
            signal=signal.Signals(number).name,
            step=trainer.global_step,
        )

    def _record_signal(self, number: int, _frame: Any) -> None:
        self._signal = number


def _is_within_fit(trainer: Trainer) -> bool:
    """Return whether the current validation is part of training, and not a sanity check."""
    return not trainer.sanity_checking and trainer.state.fn == "fit"


def requeue(run: Callable[..., Any]) -> None:
    """Requeue the current SLURM job; log a warning if that is not possible.

    Args:
        run: `subprocess.run`.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
    if job is None:
        log.warning("requeue: not a SLURM job (SLURM_JOB_ID is not set); resume the run manually")
        return
    try:
        done = run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        log.warning("requeue: scontrol cannot be run (%s); resume the run manually", error.strerror)
        return
    if done.returncode:
        log.warning("requeue: scontrol requeue %s failed: %s; resume the run manually", job, done.stderr.strip())
    else:
        log.info("requeue: job %s is requeued", job)
