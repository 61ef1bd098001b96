"""Resume an epoch at the position of the checkpoint, also with another global batch size."""

from __future__ import annotations

import logging
import math
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.progress import _Progress
from lightning.pytorch.trainer.states import TrainerFn

from ret_lightning.data.datamodule import RetrievalDataModule
from ret_lightning.data.epoch_position import Span
from ret_lightning.data.sampling.batch_samplers import EpochBatches
from ret_lightning.data.sampling.streaming import StreamedBatches
from ret_lightning.errors import ConfigError
from ret_lightning.training.callbacks.rng_states import RANDOM_STATES
from ret_lightning.training.checkpointing.last_checkpoint import UNSTARTED_VALIDATION

log = logging.getLogger(__name__)


class ResumedEpoch(Callback):
    """Adapts Lightning's restored loops to the remaining batches of a resumed epoch.

    Lightning counts batches. If the number of ranks changes within an epoch, the batches before the change keep their
    count and the remaining rows are split into batches of the new size. The epoch then has another length than the
    following ones: validation intervals and fractions in `limit_train_batches` refer to the length of the current
    epoch. The validation at the end of the epoch runs even if no rows remain.

    Also corrects how Lightning resumes at the end of an epoch if `max_steps` is set: it would end that epoch twice.

    `RetModule` adds this callback.
    """

    def __init__(self) -> None:
        self._saved_interval: tuple[Any] | None = None  # val_check_batch, while it is overridden
        self._has_mixed_sizes = False  # whether the epoch has batches of several sizes
        self._is_short = False  # whether a stream was shorter than `limit_train_batches`

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the validation interval against the length of an epoch.

        Lightning checks only the current epoch, and raises a ValueError.

        Raises:
            ConfigError: if `val_check_interval` exceeds the number of batches of an epoch.
        """
        if stage == TrainerFn.FITTING:
            _check_interval(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Convert the position of an earlier version, and check the validation interval.

        Earlier versions did not store the number of ranks; it is taken from the stored random states.

        Raises:
            ConfigError: if the resumed epoch has fewer batches than `val_check_interval`.
        """
        data = cast(Any, trainer).datamodule
        state = checkpoint.get(type(data).__qualname__, {})
        if isinstance(data, RetrievalDataModule) and "batch" in state:
            ranks = len(checkpoint.get(RANDOM_STATES, ())) or trainer.world_size
            span = Span(ranks, data.batch_size, state["batch"])
            data.load_state_dict({"epoch": state["epoch"], "spans": [span]})
        if trainer.state.fn == TrainerFn.FITTING:
            _check_interval(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adapt the restored loops, and log a changed global batch size."""
        batches = getattr(trainer.train_dataloader, "batch_sampler", None)
        if isinstance(batches, EpochBatches) and batches.position.spans:
            _warn_of_changed_batch(trainer, batches)
            self._has_mixed_sizes = batches.has_mixed_batch_sizes
        loop = trainer.fit_loop
        if not loop.restarting:
            return
        epochs: Any = loop.epoch_progress.current
        if epochs.ready == epochs.processed:
            _start_next_epoch(loop)
            return
        if self._has_mixed_sizes and _has_no_batch_left(trainer):
            _end_epoch(loop)
        progress = loop.epoch_loop.batch_progress
        if progress.is_last_batch or loop.epoch_loop.val_loop.restarted_mid_evaluation:
            # Lightning checks again whether a validation is due at this batch; it was when the checkpoint was written.
            self._saved_interval = (trainer.val_check_batch,)
            count = progress.total if trainer.check_val_every_n_epoch is None else progress.current
            trainer.val_check_batch = count.ready

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End an epoch whose stream has fewer batches than `limit_train_batches`; Lightning would wait for more."""
        batches = getattr(trainer.train_dataloader, "batch_sampler", None)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        served = progress.current.ready
        if progress.is_last_batch or not isinstance(batches, StreamedBatches) or batches.end != (batches.epoch, served):
            return
        progress.is_last_batch = True
        wait = trainer.val_check_batch
        if trainer.check_val_every_n_epoch is not None and wait is not None and served < wait < math.inf:
            self._saved_interval, trainer.val_check_batch = (wait,), served
        if not self._is_short and trainer.is_global_zero:
            self._is_short = True
            log.warning(
                "trainer.limit_train_batches=%s: an epoch of the stream has only %d batches; the learning rate schedule "
                "assumes the limit",
                trainer.limit_train_batches, served,
            )  # fmt: skip

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the validation interval."""
        if self._saved_interval is not None:
            (trainer.val_check_batch,) = self._saved_interval
            self._saved_interval = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the validation interval; after an epoch of several batch sizes, let Lightning recompute the length."""
        self.on_validation_start(trainer, pl_module)
        if self._has_mixed_sizes:
            self._has_mixed_sizes = False
            trainer.fit_loop._combined_loader = None


def _warn_of_changed_batch(trainer: Trainer, batches: EpochBatches) -> None:
    """Log a warning if the global batch differs from the checkpoint's."""
    before, epoch = batches.position.spans[-1], batches.position.epoch
    if before.size != batches.size and trainer.is_global_zero:
        log.warning(
            "resumed with a global batch of %s, previously %s; %s",
            _describe_batch(*batches.size), _describe_batch(*before.size),
            f"epoch {epoch + 1} continues with its remaining rows" if batches.served_spans(epoch) else
            f"epoch {epoch + 1} starts with all rows",
        )  # fmt: skip


def _describe_batch(ranks: int, batch_size: int) -> str:
    return f"{ranks * batch_size} rows ({ranks} rank{'s' if ranks > 1 else ''} x {batch_size})"


def _check_interval(trainer: Trainer) -> None:
    interval, limit, data = trainer.val_check_interval, trainer.limit_train_batches, cast(Any, trainer).datamodule
    by_total = trainer.check_val_every_n_epoch is None
    if (
        not isinstance(interval, int)
        or by_total
        or not trainer.enable_validation
        or not isinstance(data, RetrievalDataModule)
    ):
        return
    batches: Any = data.train_dataloader().batch_sampler
    per_epoch = batches.batches_per_epoch(*batches.size)
    if per_epoch is None:
        allowed = limit if isinstance(limit, int) else interval
    else:
        allowed = min(per_epoch, len(batches))
        allowed = min(allowed, limit) if isinstance(limit, int) else int(allowed * limit)
    if interval > allowed:
        raise ConfigError(
            f"trainer.val_check_interval={interval}: an epoch has only {allowed} batches ({_describe_batch(*batches.size)} per "
            f"batch); expected at most {allowed}, or a fraction of an epoch such as 1.0",
            code="validation-interval-too-long",
            key="trainer.val_check_interval",
            found=interval,
            allowed=allowed,
        )


def _start_next_epoch(loop: _FitLoop) -> None:
    """Mark the epoch as finished, as Lightning does unless `max_steps` is set."""
    _complete(loop.epoch_progress)
    _complete(loop.epoch_loop.batch_progress)
    cast(Any, _Loop.restarting).fset(loop, False)  # the setter of the loop ignores the value if `max_steps` is set
    loop.reset_restart_stage()
    loop.epoch_loop.reset_restart_stage()


def _complete(progress: _Progress) -> None:
    counts: tuple[Any, Any] = progress.total, progress.current
    for count in counts:
        count.completed = count.processed


def _has_no_batch_left(trainer: Trainer) -> bool:
    """Return whether the epoch has no further batch, since too few rows remain for one on each rank."""
    served = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return served >= trainer.num_training_batches or cast(Any, trainer.fit_loop._data_fetcher).done


def _end_epoch(loop: _FitLoop) -> None:
    """Set the state of an epoch after its last batch and before its validation."""
    epoch_loop = loop.epoch_loop
    _complete(epoch_loop.batch_progress)
    epoch_loop.batch_progress.is_last_batch = True
    epoch_loop.val_loop.batch_progress.load_state_dict(UNSTARTED_VALIDATION)
    loop.update_restart_stage()
    if not epoch_loop._should_check_val_epoch():
        epoch_loop._batches_that_stepped += 1  # otherwise incremented after the validation
