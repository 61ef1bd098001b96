"""Learning rate schedule: linear warm-up, then a cosine whose horizon can differ from the end of training."""

from __future__ import annotations

import logging
import math

from ret_lightning.errors import ConfigError

log = logging.getLogger(__name__)


class WarmupCosine:
    """Scales the learning rate: linearly from 0 to 1 during warm-up, then by a half cosine to `floor` at the horizon.

    After the horizon the scale stays at `floor`. The horizon is defined in steps or in epochs; by default it is the end
    of training. If the number of ranks changes when a run is resumed, a horizon in steps stays fixed and a horizon in
    epochs keeps its epochs (see `EpochSteps`). The authors of ReT use a horizon of 30 epochs and stop at 75,000 steps.

    Args:
        warmup_steps: number of optimizer steps of the warm-up.
        horizon_steps: optimizer steps until the end of the cosine, including the warm-up.
        horizon_epochs: epochs until the end of the cosine, including the warm-up.
        floor: final scale, in [0, 1].

    Raises:
        ConfigError: if both horizons are set, or a value is out of range.
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
                "scheduler: horizon_steps and horizon_epochs are mutually exclusive; set one of them to null",
                code="schedule-two-horizons",
            )
        if warmup_steps < 0 or not 0 <= floor <= 1:
            raise ConfigError(
                f"scheduler: expected warmup_steps >= 0 and floor in [0, 1], got warmup_steps={warmup_steps}, floor={floor}",
                code="schedule-out-of-range",
                warmup_steps=warmup_steps,
                floor=floor,
            )
        self.warmup_steps = warmup_steps
        self.horizon_steps = horizon_steps
        self.horizon_epochs = horizon_epochs
        self.floor = floor

    def compute_horizon(self, steps_per_epoch: int | None, last_step: int | None) -> int:
        """Return the horizon in steps.

        Args:
            steps_per_epoch: optimizer steps per epoch; None if unknown, as for streamed rows.
            last_step: the step at which the Trainer stops; None if unknown.

        Raises:
            ConfigError: if nothing determines the horizon.
        """
        if self.horizon_steps is not None:
            horizon = self.horizon_steps
        elif self.horizon_epochs is not None and steps_per_epoch is not None:
            horizon = math.ceil(self.horizon_epochs * steps_per_epoch)
        elif self.horizon_epochs is not None:
            raise ConfigError(
                "scheduler.horizon_epochs: the steps per epoch are unknown for streamed rows (data.reading=streaming); set "
                "scheduler.horizon_steps instead",
                code="schedule-epochs-unknown",
            )
        elif last_step is not None:
            horizon = last_step
        else:
            raise ConfigError(
                "scheduler: the number of training steps is unknown (trainer.max_steps is not set, and trainer.max_epochs is "
                "not set or data.reading=streaming); set scheduler.horizon_steps or trainer.max_steps",
                code="schedule-without-end",
            )
        if self.warmup_steps > horizon:
            log.warning(
                "scheduler: warmup_steps=%d exceeds the horizon of %d steps; the learning rate never reaches its maximum",
                self.warmup_steps,
                horizon,
            )
        return horizon

    def compute_scale(self, step: float, horizon: int) -> float:
        """Return the factor of the learning rate.

        Args:
            step: the step, from 0; fractional if the number of ranks has changed.
            horizon: the horizon in steps.

        Returns:
            A factor in [0, 1].
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if step >= horizon:
            return self.floor
        progress = (step - self.warmup_steps) / max(1, horizon - self.warmup_steps)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
