"""Checks before a run starts: devices, training and test data, monitored metrics, batch limits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from omegaconf import DictConfig

from ret_lightning.config.run_rules import find_unlogged_monitors, has_own_loss
from ret_lightning.data.datamodule import RetrievalDataModule
from ret_lightning.data.types import Split
from ret_lightning.errors import ConfigError
from ret_lightning.evaluation.batch_limits import limit_batches
from ret_lightning.models.checkpoint.config_writer import config_of
from ret_lightning.models.two_towers import TwoTowers

log = logging.getLogger(__name__)


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Check that this machine has the GPUs that the group `trainer` requests.

    Args:
        trainer: the config group `trainer`.

    Raises:
        ConfigError: if there is no GPU, or too few.
    """
    accelerator, devices = trainer.get("accelerator"), trainer.get("devices")
    if accelerator not in ("gpu", "cuda") or (accelerator == "gpu" and torch.backends.mps.is_available()):
        return
    count = torch.cuda.device_count()
    if count == 0:
        built = (
            ""
            if torch.version.cuda or torch.version.hip
            else f"; PyTorch {torch.__version__} was built without GPU support"
        )
        raise ConfigError(
            f"trainer.accelerator={accelerator}: PyTorch finds no GPU{built}; set trainer=cpu, or trainer=ddp_cpu for several "
            "processes",
            code="gpu-not-found",
            key="trainer.accelerator",
            found=accelerator,
            allowed=("cpu",),
        )
    required = _required_devices(devices)
    if required > count:
        raise ConfigError(
            f"trainer.devices={devices}: expected at most {count}, the number of GPUs; trainer.devices=auto uses all GPUs",
            code="too-few-gpus",
            key="trainer.devices",
            found=devices,
            most=count,
        )


def _required_devices(devices: Any) -> int:
    """Return the number of GPUs that `trainer.devices` requires."""
    if isinstance(devices, str):
        listed = [part for part in devices.split(",") if part.strip().isdigit()]
        if "," in devices:
            return max((int(part) + 1 for part in listed), default=0)
        return int(listed[0]) if listed else 0
    if isinstance(devices, int):
        return devices
    return max((int(device) + 1 for device in devices or ()), default=0)


def warn_if_not_storable(retriever: TwoTowers) -> None:
    """Warn if `ret-export` cannot store the settings of the model. Training and evaluation are not affected."""
    try:
        config_of(retriever)
    except ConfigError as error:
        log.warning("ret-export and save_pretrained cannot store this model; training is not affected: %s", error)


def prepare_and_check(data: LightningDataModule, trainer: Trainer, config: DictConfig) -> None:
    """Prepare the data on the first rank and check it, cheapest checks first.

    Files are located before the training file is scanned or copied, and the test split is read before training.

    Args:
        data: data module of the run; most checks apply only to a `RetrievalDataModule`.
        trainer: trainer of the run, before it is started.
        config: config of the run.

    Raises:
        DataError: if a file is missing, cannot be read or has an invalid row.
        ConfigError: if a callback monitors a metric that is not computed, or a limit selects no batch.
    """
    if not isinstance(data, RetrievalDataModule):
        data.prepare_data()
        data.setup("fit")
        return
    tested = config.test_with != "none"
    _check_monitors(config, data.check_files(("train", "val", "test") if tested else ("train", "val")))
    if tested:
        data.setup("test")
        check_evaluation_limit(data, trainer, "test")
    data.prepare_data()
    data.setup("fit")
    batches = data.training_batches(trainer.world_size)
    if batches is not None:  # None for streamed rows, whose limits are integers
        _check_limit(trainer, "limit_train_batches", batches, "the training rows")
    if trainer.limit_val_batches:
        subsets = data.evaluation_subsets("val")
        answered = [subset.name for subset in subsets if any(query.answers for query in subset.queries)]
        _check_monitors(config, [subset.name for subset in subsets], answered)
        check_evaluation_limit(data, trainer, "val")


def check_evaluation_limit(data: RetrievalDataModule, trainer: Trainer, split: Split, ranks: int | None = None) -> None:
    """Check that `trainer.limit_<split>_batches` selects at least one batch of each candidate pool and query file.

    Args:
        data: data module, after its setup for the split.
        trainer: trainer with the limit.
        split: `val` or `test`.
        ranks: number of ranks that share each file; None: the world size of the trainer.

    Raises:
        ConfigError: if the limit selects no batch.
    """
    for subset in data.evaluation_subsets(split):
        for side, rows in (("passages", subset.pool), ("queries", subset.queries)):
            batches = max(1, -(-len(rows) // data.eval_batch_size) // (ranks or trainer.world_size))
            _check_limit(trainer, f"limit_{split}_batches", batches, f"{split}/{subset.name} {side}")


def _check_limit(trainer: Trainer, name: str, batches: int, what: str) -> None:
    overfits = trainer.overfit_batches  # type: ignore[attr-defined]  # set by a connector of the trainer
    option = "trainer.overfit_batches" if overfits else f"trainer.{name}"
    limit_batches(batches, getattr(trainer, name), option, what)


def _check_monitors(config: DictConfig, subsets: list[str] | None, answered: list[str] | None = None) -> None:
    ks, own_loss = tuple(config.evaluation.recall_at), has_own_loss(config)
    for key, error in find_unlogged_monitors(config.callbacks, ks, subsets, answered, own_loss):
        raise ConfigError(f"{key}: {error.message}", code=error.code, key=key, **error.values)
