"""The horizon of a schedule in optimiser steps, and how steps count towards it when the number of ranks changes in a run."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

from lightning import Trainer

from ret_lightning.data.sampling.batch_samplers import EpochBatches
from ret_lightning.training.schedule import WarmupCosine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochSteps:
    """Counts optimiser steps in steps of the size that a run began with.

    With another number of ranks an epoch has another number of steps. A schedule in epochs then keeps its epochs: each step
    counts as its share of one. The learning rate is continuous at the change, and the horizon is off by less than a step
    per change, since the last batch of an epoch is smaller.

    Attributes:
        per_epoch: steps per epoch at the beginning of the run.
        since: the step from which on `rate` holds.
        counted: steps of the first size up to `since`.
        rate: steps of the first size per step.
    """

    per_epoch: int
    since: int = 0
    counted: float = 0.0
    rate: float = 1.0

    def count(self, step: int) -> float:
        """Steps of the first size at a step, `since` or later."""
        return max(0.0, self.counted + (step - self.since) * self.rate)

    def changed(self, step: int, per_epoch: int) -> EpochSteps:
        """The count when an epoch has `per_epoch` steps from this step on."""
        return replace(self, since=step, counted=self.count(step), rate=self.per_epoch / per_epoch)


def lay_out(
    schedule: WarmupCosine, trainer: Trainer, restored: EpochSteps | None, step: int
) -> tuple[int, EpochSteps | None]:
    """The horizon of a schedule, and how steps count towards it.

    A horizon in steps (`horizon_steps`, or the end of the run if `max_steps` decides it) stays where it is.

    Args:
        schedule: of the run.
        trainer: about to train.
        restored: from the checkpoint.
        step: of the checkpoint; 0: of a new run.

    Returns:
        The horizon in steps, and None if each step counts as one.

    Raises:
        ConfigError: if nothing determines the horizon.
    """
    last_step = trainer.estimated_stepping_batches
    trainer.fit_loop.setup_data()  # unless it was needed for the estimate
    batches = getattr(trainer.train_dataloader, "batch_sampler", None)
    before = batches.position.spans[-1] if isinstance(batches, EpochBatches) and batches.position.spans else None
    steps, is_new = restored, before is not None and before.size != batches.size
    if is_new:
        now, then = (
            _steps_per_epoch(trainer, batches.batches_per_epoch(*size)) for size in (batches.size, before.size)
        )
        steps = None if now is None else (restored or EpochSteps(then)).changed(step, now)
    if steps is None:
        per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
        return schedule.horizon(
            math.ceil(per_epoch) if math.isfinite(per_epoch) else None,
            int(last_step) if 0 <= last_step < math.inf else None,
        ), None
    end = None if trainer.max_epochs == -1 else trainer.max_epochs * steps.per_epoch
    stops_by_steps = trainer.max_steps != -1 and (end is None or steps.count(trainer.max_steps) <= end)
    if schedule.horizon_steps is not None or (schedule.horizon_epochs is None and stops_by_steps):
        return schedule.horizon(None, trainer.max_steps), None
    if is_new and now != then and trainer.is_global_zero:
        log.warning(
            "resume: steps per epoch: %d, before %d; the schedule follows the epochs, so the learning rate continues from "
            "its value at step %d", now, then, step,
        )  # fmt: skip
    return schedule.horizon(steps.per_epoch, end), steps


def _steps_per_epoch(trainer: Trainer, batches: int | None) -> int | None:
    limit = trainer.limit_train_batches
    if isinstance(limit, int):
        batches = limit if batches is None else min(batches, limit)
    elif batches is not None:
        batches = int(batches * limit)
    return None if batches is None else math.ceil(batches / trainer.accumulate_grad_batches)
