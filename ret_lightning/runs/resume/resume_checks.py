"""Callbacks that run when training starts: compare the configs of all ranks, and report a changed learning rate."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from ret_lightning.errors import UserError
from ret_lightning.runs.identity import differences, flatten

log = logging.getLogger(__name__)


class SameConfig(Callback):
    """Callback that compares the resolved configs of all ranks before training or evaluation.

    Under SLURM or torchrun each task composes its own config, so a time stamp, an environment variable or a random resolver
    can result in different settings.

    Args:
        config: config of this rank.
    """

    def __init__(self, config: DictConfig) -> None:
        self._config = flatten(config) | {"output_dir": str(config.output_dir)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise UserError on every rank if the config of a rank differs from that of the first rank."""
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
                    f"{key}: {first} on rank 0, {other} on rank {rank}{more}; each task composes its own config; set "
                    f"{key}=<value> on the command line",
                    code="ranks-differ",
                    key=key,
                    found=(first, other),
                    rank=rank,
                )


class ResumedLearningRate(Callback):
    """Callback that warns if the learning rate changes on resume, for instance after extending a schedule."""

    def __init__(self) -> None:
        self._horizon: int | None = None
        self._stored_horizon: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the length of the schedule in steps."""
        return {"horizon": self._horizon}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the length of the schedule of the checkpoint."""
        self._stored_horizon = state_dict["horizon"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the stored learning rate with the rate of the schedule at the same step."""
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
        option = f"scheduler.horizon_steps={self._stored_horizon or '<steps of the earlier schedule>'}"
        log.warning(
            "learning rate at step %d: %.3g before the resume, %.3g now, because the length of the schedule changed%s; to keep "
            "the earlier schedule, set %s",
            trainer.global_step, stored, now, lengths, option,
        )  # fmt: skip
