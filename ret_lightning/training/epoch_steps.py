"""Convert optimizer steps to steps of the initial size when the number of ranks changes during a run."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any, cast

from lightning import Trainer

from ret_lightning.data.sampling.batch_samplers import EpochBatches
from ret_lightning.training.schedule import WarmupCosine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochSteps:
    """Counts optimizer steps in units of the steps that the run started with.

    With another number of ranks an epoch has another number of steps. A schedule defined in epochs keeps its epochs:
    each step is weighted by its share of an epoch. The learning rate is continuous at the change. The horizon is off by
    less than one step per change, since the last batch of an epoch can be smaller.

    Attributes:
        per_epoch: steps per epoch at the start of the run.
        since: the step from which `rate` applies.
        counted: initial-size steps before `since`.
        rate: initial-size steps per step.
    """

    per_epoch: int
    since: int = 0
    counted: float = 0.0
    rate: float = 1.0

    def count(self, step: int) -> float:
        """Return the number of initial-size steps before a step.

        Args:
            step: a step, at least `since`.
        """
        return max(0.0, self.counted + (step - self.since) * self.rate)

    def with_steps_per_epoch(self, step: int, per_epoch: int) -> EpochSteps:
        """Return the counter after a change of the steps per epoch.

        Args:
            step: the step from which the change applies.
            per_epoch: steps per epoch from there on.
        """
        return replace(self, since=step, counted=self.count(step), rate=self.per_epoch / per_epoch)


def resolve_horizon(
    schedule: WarmupCosine, trainer: Trainer, restored: EpochSteps | None, step: int
) -> tuple[int, EpochSteps | None]:
    """Compute the horizon of a schedule, and how steps are counted towards it.

    A horizon defined in steps (`horizon_steps`, or `max_steps` if it ends the run) does not change with the number of
    ranks.

    Args:
        schedule: the schedule of the run.
        trainer: the Trainer, before training.
        restored: the step counter of the checkpoint; None if it has none.
        step: the step of the checkpoint; 0 for a new run.

    Returns:
        The horizon in steps, and the step counter, None if each step counts as one.

    Raises:
        ConfigError: if nothing determines the horizon.
    """
    last_step = trainer.estimated_stepping_batches
    trainer.fit_loop.setup_data()  # does nothing if the estimate needed the data
    batches: Any = getattr(trainer.train_dataloader, "batch_sampler", None)
    before: Any = batches.position.spans[-1] if isinstance(batches, EpochBatches) and batches.position.spans else None
    steps, is_changed = restored, before is not None and before.size != batches.size
    if is_changed:
        new, old = (_steps_per_epoch(trainer, batches.batches_per_epoch(*size)) for size in (batches.size, before.size))
        steps = None if new is None else (restored or EpochSteps(cast(int, old))).with_steps_per_epoch(step, new)
    if steps is None:
        per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
        return schedule.compute_horizon(
            math.ceil(per_epoch) if math.isfinite(per_epoch) else None,
            int(last_step) if 0 <= last_step < math.inf else None,
        ), None
    end = None if trainer.max_epochs is None or trainer.max_epochs == -1 else trainer.max_epochs * steps.per_epoch
    stops_by_steps = trainer.max_steps != -1 and (end is None or steps.count(trainer.max_steps) <= end)
    if schedule.horizon_steps is not None or (schedule.horizon_epochs is None and stops_by_steps):
        return schedule.compute_horizon(None, trainer.max_steps), None
    if is_changed and new != old and trainer.is_global_zero:
        log.warning(
            "resumed from step %d with %d steps per epoch, previously %d; the schedule is defined in epochs, and the learning "
            "rate continues from its current value", step, new, old,
        )  # fmt: skip
    return schedule.compute_horizon(steps.per_epoch, end), steps


def _steps_per_epoch(trainer: Trainer, batches: int | None) -> int | None:
    limit = trainer.limit_train_batches
    if isinstance(limit, int):
        batches = limit if batches is None else min(batches, limit)
    elif batches is not None:
        batches = int(batches * limit)
    return None if batches is None else math.ceil(batches / trainer.accumulate_grad_batches)
