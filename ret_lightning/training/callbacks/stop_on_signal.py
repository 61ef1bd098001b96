"""SIGTERM and SIGUSR1 (what SLURM sends before it takes the machine): the run saves, stops, and asks to be queued again."""

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

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopOnSignal(Callback):
    """Stops all ranks together after the optimiser step that was under way, with a checkpoint.

    The handler only takes a note; ranks agree after every batch, whichever of them was told. Among several ranks that is one
    number by gloo, so no GPU is waited for. Of an evaluation ranks may have different numbers of batches: who is done sooner
    goes on agreeing until all are. A signal in the midst of a validation stops it, and the checkpoint goes on with
    that validation from its beginning. Where neither can be, at the last batch of an epoch, the run goes on to the next of
    the two.

    Args:
        requeue: under SLURM, ask for the job to be queued again (`scontrol requeue`). The command line must then say
            `resume=auto` and name its `output_dir`.
    """

    def __init__(self, requeue: bool = False) -> None:
        self.requeue = requeue
        self._signal = 0
        self._saved = 0
        self._group: Any = None
        self._left = 0  # batches that this rank still has of the evaluation that is under way
        self._behind = 0  # how many less it has than the rank with the most

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to listen, in the place of Lightning's own handlers; when the run ends, Lightning gives all signals back."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)
        if trainer.world_size > 1 and self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learns how many batches there are."""
        if _is_within_fit(trainer):
            self._begin_evaluation(trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_train_start` and `on_validation_start`."""
        self.on_train_start(trainer, pl_module)
        self._begin_evaluation(trainer.num_test_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops after a whole optimiser step."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if progress.is_last_batch or trainer.fit_loop._should_accumulate():
            return  # the validation is next, or there are gradients that no checkpoint holds
        self._saved = self._asked()
        if self._saved:
            self._save(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ends the run that was saved after the batch before, whose metrics Lightning has logged meanwhile."""
        if self._saved:
            self._stop(trainer, self._saved)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Stops a validation."""
        if _is_within_fit(trainer) and (asked := self._asked_in_evaluation()):
            self._save(trainer, validation_again=True)
            self._stop(trainer, asked)

    def on_test_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Stops a test; there is nothing to save."""
        if asked := self._asked_in_evaluation():
            raise Stopped(f"stopped by {signal.Signals(asked).name} while testing", asked, code="stopped-while-testing")

    def _begin_evaluation(self, batches: Sequence[int | float]) -> None:
        self._left = int(sum(batches))
        self._behind = self._largest(self._left) - self._left

    def _asked_in_evaluation(self) -> int:
        """As `_asked`, as often on each rank as the one with the most batches has some."""
        self._left -= 1
        times = 1 if self._left else 1 + self._behind
        return next((asked for asked in (self._asked() for _ in range(times)) if asked), 0)

    def _asked(self) -> int:
        """The signal that any rank was sent; 0 for none."""
        return self._largest(self._signal)

    def _largest(self, number: int) -> int:
        """Of the ranks' numbers."""
        if self._group is None:
            return number
        found = torch.tensor([number])
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(found)

    def _save(self, trainer: Trainer, validation_again: bool = False) -> None:
        for callback in trainer.callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.save(trainer, validation_again)

    def _stop(self, trainer: Trainer, asked: int) -> None:
        if trainer.is_global_zero and self.requeue:
            requeue(subprocess.run)
        where = next((f"saved in {c.file}" for c in trainer.callbacks if isinstance(c, LastCheckpoint)), None)
        raise Stopped(
            f"stopped by {signal.Signals(asked).name} at step {trainer.global_step}, "
            f"{where or 'and not saved, since callbacks.last is left out'}",
            asked,
            code="stopped-while-training",
            step=trainer.global_step,
        )

    def _note(self, number: int, _frame: Any) -> None:
        self._signal = number


def _is_within_fit(trainer: Trainer) -> bool:
    """Whether a validation is one that training waits for."""
    return not trainer.sanity_checking and trainer.state.fn == "fit"


def requeue(run: Callable[..., Any]) -> None:
    """Asks SLURM to queue this job again; says so where there is no SLURM.

    Args:
        run: `subprocess.run`.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
    if job is None:
        log.warning("requeue: this is no SLURM job (SLURM_JOB_ID is not set); continue by hand")
        return
    try:
        done = run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        log.warning("requeue: scontrol cannot be run (%s); continue by hand", error.strerror)
        return
    if done.returncode:
        log.warning("requeue: scontrol requeue %s failed: %s", job, done.stderr.strip())
    else:
        log.info("job %s is queued again", job)
