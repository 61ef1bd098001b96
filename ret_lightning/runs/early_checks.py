"""What is checked before a run starts: devices, the data that training and test read, monitored metrics, batch limits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from omegaconf import DictConfig

from ret_lightning.config.run_rules import has_own_loss, unlogged_monitors
from ret_lightning.data.datamodule import RetrievalDataModule
from ret_lightning.data.types import Split
from ret_lightning.errors import ConfigError
from ret_lightning.evaluation.batch_limits import limit_batches
from ret_lightning.models.checkpoint.config_writer import config_of
from ret_lightning.models.two_towers import TwoTowers

log = logging.getLogger(__name__)


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Raise ConfigError if the group `trainer` asks for GPUs that this machine does not have."""
    accelerator, devices = trainer.get("accelerator"), trainer.get("devices")
    if accelerator not in ("gpu", "cuda") or (accelerator == "gpu" and torch.backends.mps.is_available()):
        return
    count = torch.cuda.device_count()
    if count == 0:
        built = (
            ""
            if torch.version.cuda or torch.version.hip
            else f"; PyTorch {torch.__version__} is built without GPU support"
        )
        raise ConfigError(
            f"trainer.accelerator={accelerator}: PyTorch finds no GPU{built}; trainer=cpu runs on the CPU, trainer=ddp_cpu in "
            "several processes",
            code="gpu-not-found",
            key="trainer.accelerator",
            found=accelerator,
            allowed=("cpu",),
        )
    wanted = _devices_wanted(devices)
    if wanted > count:
        raise ConfigError(
            f"trainer.devices={devices}: PyTorch finds {count} GPU{'s' if count > 1 else ''}; trainer.devices=auto takes all",
            code="too-few-gpus",
            key="trainer.devices",
            found=devices,
            most=count,
        )


def _devices_wanted(devices: Any) -> int:
    """How many GPUs the machine must have."""
    if isinstance(devices, str):
        listed = [part for part in devices.split(",") if part.strip().isdigit()]
        if "," in devices:
            return max((int(part) + 1 for part in listed), default=0)
        return int(listed[0]) if listed else 0
    if isinstance(devices, int):
        return devices
    return max((int(device) + 1 for device in devices or ()), default=0)


def warn_if_not_storable(retriever: TwoTowers) -> None:
    """Warn if `ret-export` will refuse the model; training and evaluation work with any objects as settings."""
    try:
        config_of(retriever)
    except ConfigError as error:
        log.warning("ret-export and save_pretrained will refuse this model; training is not affected: %s", error)


def prepare_and_check(data: LightningDataModule, trainer: Trainer, config: DictConfig) -> None:
    """Prepare the data of the first rank and check what the run needs of it, the cheapest first.

    Files are found before the training file is scanned or copied, and the test split is read before training.

    Args:
        data: of the run; what only `RetrievalDataModule` has is checked there only.
        trainer: of the run, before it is started.
        config: of the run.

    Raises:
        DataError: if a file is missing, cannot be read or has a bad row.
        ConfigError: if a callback monitors a metric that is not computed, or a limit leaves no batch.
    """
    if not isinstance(data, RetrievalDataModule):
        data.prepare_data()
        data.setup("fit")
        return
    tested = config.test_with != "none"
    _check_monitors(config, data.check_files(("train", "val", *(["test"] if tested else []))))
    if tested:
        data.setup("test")
        check_evaluation_limit(data, trainer, "test")
    data.prepare_data()
    data.setup("fit")
    batches = data.training_batches(trainer.world_size)
    if batches is not None:  # a stream, whose limit is a whole number
        _check_limit(trainer, "limit_train_batches", batches, "the training rows")
    if trainer.limit_val_batches:
        subsets = data.evaluation_subsets("val")
        answered = [subset.name for subset in subsets if any(query.answers for query in subset.queries)]
        _check_monitors(config, [subset.name for subset in subsets], answered)
        check_evaluation_limit(data, trainer, "val")


def check_evaluation_limit(data: RetrievalDataModule, trainer: Trainer, split: Split, ranks: int | None = None) -> None:
    """Raise ConfigError if `trainer.limit_<split>_batches` leaves no batch of a pool or a file of queries.

    Args:
        data: the split is set up.
        trainer: with the limit.
        split: `val` or `test`.
        ranks: over which each file is distributed; None: those of the trainer.
    """
    for subset in data.evaluation_subsets(split):
        for side, rows in (("passages", subset.pool), ("queries", subset.queries)):
            batches = max(1, -(-len(rows) // data.eval_batch_size) // (ranks or trainer.world_size))
            _check_limit(trainer, f"limit_{split}_batches", batches, f"{split}/{subset.name} {side}")


def _check_limit(trainer: Trainer, name: str, batches: int, what: str) -> None:
    option = "trainer.overfit_batches" if trainer.overfit_batches else f"trainer.{name}"
    limit_batches(batches, getattr(trainer, name), option, what)


def _check_monitors(config: DictConfig, subsets: list[str] | None, answered: list[str] | None = None) -> None:
    ks, own_loss = tuple(config.evaluation.recall_at), has_own_loss(config)
    for key, wrong in unlogged_monitors(config.callbacks, ks, subsets, answered, own_loss):
        raise ConfigError(f"{key}: {wrong.message}", code=wrong.code, key=key, **wrong.values)
