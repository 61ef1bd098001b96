"""The learning rate over the steps: a linear warm-up, then a cosine, whose horizon is apart from where training stops."""

from __future__ import annotations

import logging
import math

from ret_lightning.errors import ConfigError

log = logging.getLogger(__name__)


class WarmupCosine:
    """Scale of the learning rate: 0 to 1 over the warm-up, then a half cosine down to `floor` at the horizon, then flat.

    The horizon is given in steps or in epochs; without either it is where the Trainer stops. If the number of ranks changes
    on resume, a horizon in steps stays and one in epochs keeps its epochs (see `EpochSteps`). ReT's authors laid the cosine
    out over 30 epochs and stopped at 75,000 steps.

    Args:
        warmup_steps: optimiser steps of the warm-up.
        horizon_steps: optimiser steps to the end of the cosine, the warm-up included.
        horizon_epochs: the same in epochs.
        floor: the last scale, in [0, 1].
    """

    def __init__(
        self,
        warmup_steps: int = 0,
        horizon_steps: int | None = None,
        horizon_epochs: float | None = None,
        floor: float = 0.0,
    ) -> None:
        if horizon_steps is not None and horizon_epochs is not None:
            raise ConfigError(
                "scheduler: horizon_steps and horizon_epochs are two words for one thing; set one to null",
                code="schedule-two-horizons",
            )
        if warmup_steps < 0 or not 0 <= floor <= 1:
            raise ConfigError(
                f"scheduler: warmup_steps={warmup_steps} must be >= 0 and floor={floor} in [0, 1]",
                code="schedule-out-of-range",
                warmup_steps=warmup_steps,
                floor=floor,
            )
        self.warmup_steps = warmup_steps
        self.horizon_steps = horizon_steps
        self.horizon_epochs = horizon_epochs
        self.floor = floor

    def horizon(self, steps_per_epoch: int | None, last_step: int | None) -> int:
        """The horizon in steps.

        Args:
            steps_per_epoch: optimiser steps; None: not known, as when rows are streamed.
            last_step: where the Trainer stops; None: it does not know.

        Raises:
            ConfigError: if nothing says where the horizon is.
        """
        if self.horizon_steps is not None:
            horizon = self.horizon_steps
        elif self.horizon_epochs is not None and steps_per_epoch is None:
            raise ConfigError(
                "scheduler.horizon_epochs: how many steps an epoch has is not known when rows are streamed "
                "(data.reading=streaming); set scheduler.horizon_steps instead",
                code="schedule-epochs-unknown",
            )
        elif self.horizon_epochs is not None:
            horizon = math.ceil(self.horizon_epochs * steps_per_epoch)
        elif last_step is not None:
            horizon = last_step
        else:
            raise ConfigError(
                "scheduler: the run has no end that is known (trainer.max_steps is open, and so is max_epochs, or rows are "
                "streamed, data.reading=streaming, so that an epoch's steps are not known); the cosine needs "
                "scheduler.horizon_steps or trainer.max_steps",
                code="schedule-without-end",
            )
        if self.warmup_steps > horizon:
            log.warning(
                "scheduler: the warm-up of %d steps outlasts the run of %d; the learning rate never reaches its height",
                self.warmup_steps,
                horizon,
            )
        return horizon

    def scale(self, step: float, horizon: int) -> float:
        """The factor of the learning rate at a step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if step >= horizon:
            return self.floor
        progress = (step - self.warmup_steps) / max(1, horizon - self.warmup_steps)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
