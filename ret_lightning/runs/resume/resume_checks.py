"""What is checked and reported when training starts: equal configs on all ranks, and a learning rate that a resume moves."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from ret_lightning.errors import UserError
from ret_lightning.runs.identity import differences, flat

log = logging.getLogger(__name__)


class SameConfig(Callback):
    """Compares the resolved configs of all ranks before anything is trained or evaluated.

    Under SLURM or torchrun each task composes the config itself, so that a time, an environment variable or a random resolver
    could give ranks different settings.

    Args:
        config: this rank's.
    """

    def __init__(self, config: DictConfig) -> None:
        self._config = flat(config) | {"output_dir": str(config.output_dir)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise UserError on every rank if one of them differs from the first."""
        if trainer.world_size == 1 or not torch.distributed.is_initialized():
            return
        configs: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(configs, self._config)
        for rank, config in enumerate(configs):
            different = differences(configs[0], config)
            if different:
                key, (first, other) = next(iter(different.items()))
                more = f", and {len(different) - 1} more keys" if len(different) > 1 else ""
                raise UserError(
                    f"{key} is {first} on rank 0 and {other} on rank {rank}{more}: each task composed its own config; give "
                    f"the value on the command line ({key}=...)",
                    code="ranks-differ",
                    key=key,
                    found=(first, other),
                    rank=rank,
                )


class ResumedLearningRate(Callback):
    """Reports where resuming moves the learning rate, as extending a run does whose schedule ends where training ends."""

    def __init__(self) -> None:
        self._horizon: int | None = None
        self._stored_horizon: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """The steps of the schedule."""
        return {"horizon": self._horizon}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The steps of the schedule that the checkpoint was trained by."""
        self._stored_horizon = state_dict["horizon"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the stored learning rate with what the schedule gives at the same step."""
        self._horizon = getattr(pl_module, "schedule_horizon", None)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        if trainer.ckpt_path is None or not trainer.is_global_zero or not schedulers:
            return
        scheduler = schedulers[0]
        if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            return
        stored = scheduler.optimizer.param_groups[0]["lr"]
        peak = scheduler.base_lrs[0]
        now = peak * scheduler.lr_lambdas[0](scheduler.last_epoch)
        if abs(now - stored) <= 1e-6 * peak:
            return
        lengths = f" ({self._stored_horizon} steps before, {self._horizon} now)" if self._stored_horizon else ""
        remedy = f"scheduler.horizon_steps={self._stored_horizon or '<steps of the earlier schedule>'}"
        log.warning(
            "learning rate at step %d: %.3g before the resume, %.3g now, since the length of the schedule changed%s; "
            "%s keeps the earlier schedule",
            trainer.global_step, stored, now, lengths, remedy,
        )  # fmt: skip
