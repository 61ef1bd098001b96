"""The evaluation of a trained model by itself: from a checkpoint and a data set to `metrics.json`, without training."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from ret_lightning import __version__
from ret_lightning.atomic import write_text
from ret_lightning.config.build import build
from ret_lightning.data.datamodule import M2KRDataModule
from ret_lightning.data.m2kr import EvaluationSubset, Split
from ret_lightning.errors import ConfigError
from ret_lightning.losses import ContrastiveLoss
from ret_lightning.training.evaluation import RetrievalEvaluation
from ret_lightning.training.folder import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    METRICS_FILE,
    ORIGIN_FILE,
    TIMINGS_FILE,
    write_json,
)
from ret_lightning.training.module import RetModule
from ret_lightning.training.process import ended, quieten
from ret_lightning.training.progress import Progress
from ret_lightning.training.ranks import SameConfigDDP
from ret_lightning.training.results import write_results
from ret_lightning.training.schedule import WarmupCosine
from ret_lightning.training.trained import opened, training_checkpoint

log = logging.getLogger(__name__)


def evaluate(config: DictConfig) -> dict[str, float]:
    """Encodes pools and queries, ranks, and leaves metrics, rankings and timings in a folder.

    The way is that of ret-train's own test: the same module, loaders and callback, hence the same metrics.

    Args:
        config: as ret-evaluate composes it; `output_dir` is the folder.

    Returns:
        The metrics, as in `metrics.json`, which is written last and whole; empty on other ranks than the first.

    Raises:
        UserError: on what the user can mend.
    """
    started = time.perf_counter()
    folder, split = Path(config.output_dir), config.split
    _take_folder(folder, config)
    quieten()
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    opened.cache_clear()  # another model may stand there by now
    # Nothing is trained: loss, optimiser and schedule are what the module asks for, and stay idle.
    module = RetModule(opened(config.checkpoint), ContrastiveLoss(), torch.optim.SGD, WarmupCosine())
    data = EvaluationRowsOnly(build(config.data))
    evaluation: RetrievalEvaluation = build(config.evaluation)
    trainer: Trainer = build(
        config.trainer, logger=False, callbacks=[evaluation, Progress()], enable_checkpointing=False
    )
    if isinstance(trainer.strategy, SameConfigDDP):
        trainer.strategy.command = "evaluate"
    with ended(trainer, []):
        run = trainer.test if split == "test" else trainer.validate
        run(module, datamodule=data, verbose=False)
        if not trainer.is_global_zero:
            return {}
        prefix = f"{split}/seconds/"
        seconds = {
            name.removeprefix(prefix): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(prefix)
        }
        return _finish(evaluation, config, seconds, started)


class EvaluationRowsOnly(LightningDataModule):
    """The evaluation half of a data module: whatever concerns training rows, be they there or not, is left alone.

    Args:
        whole: the data module.
    """

    def __init__(self, whole: M2KRDataModule) -> None:
        super().__init__()
        self.whole = whole
        self.on_bad_row = whole.on_bad_row
        self.max_bad_fraction = whole.max_bad_fraction

    def setup(self, stage: str | None = None) -> None:
        """Reads queries and pools; what is cached of images and glyphs is guarded by locks of its own."""
        self.whole.trainer = self.trainer
        self.whole.setup(stage)

    def evaluation_subsets(self, split: Split) -> list[EvaluationSubset]:
        """As the whole module's."""
        return self.whole.evaluation_subsets(split)

    def val_dataloader(self) -> list[DataLoader]:
        """As the whole module's."""
        return self.whole.val_dataloader()

    def test_dataloader(self) -> list[DataLoader]:
        """As the whole module's."""
        return self.whole.test_dataloader()


def _take_folder(folder: Path, config: DictConfig) -> None:
    if rank_zero_only.rank != 0:  # by the environment: no process group exists yet
        return
    if (folder / METRICS_FILE).exists():
        raise ConfigError(
            f"output_dir={folder}: holds finished metrics ({METRICS_FILE}); choose another folder, or remove this one"
        )
    if (folder / CHECKPOINTS_FOLDER).exists():
        raise ConfigError(f"output_dir={folder}: is the folder of a training run; choose another one")
    write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(config, resolve=True))


def _finish(
    evaluation: RetrievalEvaluation, config: DictConfig, seconds: dict[str, float], started: float
) -> dict[str, float]:
    folder, split = Path(config.output_dir), config.split
    results = evaluation.results[split]
    metrics, _ = write_results(evaluation, split, folder)
    origin: dict[str, Any] = {
        "checkpoint": str(training_checkpoint(config.checkpoint) or config.checkpoint),
        "split": split,
        "version": __version__,
    }
    agreement = {name: result.agreement for name, result in results.items() if result.agreement}
    write_json(folder / ORIGIN_FILE, origin | ({"agreement_with_exact_search": agreement} if agreement else {}))
    timings = {
        "seconds": seconds | {"everything": time.perf_counter() - started},
        "passages": sum(len(result.indexed_rows) for result in results.values()),
        "queries": sum(len(result.query_rows) for result in results.values()),
    }
    write_json(folder / TIMINGS_FILE, timings)
    write_json(folder / METRICS_FILE, metrics)
    log.info("metrics, rankings and timings are in %s", folder)
    return metrics
