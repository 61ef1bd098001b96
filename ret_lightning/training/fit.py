"""Train a retriever from Python objects, without configs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import Callback, LightningDataModule, Trainer

from ret_lightning.errors import ConfigError
from ret_lightning.evaluation.callback import RetrievalEvaluation
from ret_lightning.evaluation.evaluation_result import EvaluationResult
from ret_lightning.losses import ContrastiveLoss, RetrievalLoss
from ret_lightning.models import RetRetriever
from ret_lightning.retrieval import ExactIndex
from ret_lightning.runtime.run_layout import CHECKPOINTS_FOLDER
from ret_lightning.training.checkpointing.best_checkpoint import BestCheckpoint
from ret_lightning.training.checkpointing.checkpoint_io import RunCheckpointIO
from ret_lightning.training.checkpointing.selection import find_best_checkpoint
from ret_lightning.training.module import RetModule
from ret_lightning.training.schedule import WarmupCosine

log = logging.getLogger(__name__)

MODEL_FOLDER = "model"


def train(
    retriever: RetRetriever,
    data: LightningDataModule,
    output_dir: str | Path,
    *,
    loss: RetrievalLoss | None = None,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
    scheduler: WarmupCosine | None = None,
    evaluation: RetrievalEvaluation | None = None,
    monitor: str = "val/mean/recall@5",
    micro_batch: int | None = None,
    backbone_learning_rate_scale: float = 0.1,
    seed: int = 42,
    callbacks: Sequence[Callback] = (),
    **trainer_options: Any,
) -> EvaluationResult:
    """Train a retriever, evaluate it after every epoch, and test the weights with the best validation score.

    The best weights are written to `<output_dir>/model` in the published layout and loaded into `retriever`. Resuming,
    a stored config and reports require `ret-train`.

    Args:
        retriever: the model, from `build_retriever` or `RetRetriever.from_pretrained`.
        data: `M2KRDataModule`, or any data module with the same batches and a method `evaluation_subsets`.
        output_dir: the folder to write; it must not contain a model.
        loss: the loss; None uses `ContrastiveLoss`.
        optimizer: function from parameter groups to an optimizer; None uses AdamW with a learning rate of 1e-4.
        scheduler: the learning rate schedule; None uses a cosine over the whole training, without warm-up.
        evaluation: the evaluation callback; None uses exact search.
        monitor: the metric that selects the weights; larger is better.
        micro_batch: see `RetModule`.
        backbone_learning_rate_scale: see `RetModule`.
        seed: random seed of the training, for example of dropout. It does not affect the initial weights of
            `retriever`.
        callbacks: further callbacks for the Trainer.
        trainer_options: further arguments of the Trainer, for example `max_epochs=10` or `accelerator="gpu"`.

    Returns:
        The result of the test split.

    Raises:
        UserError: if the data or a setting is invalid.
    """
    folder = Path(output_dir)
    if (folder / MODEL_FOLDER).exists():
        raise ConfigError(
            f"output_dir={folder}: the folder already contains a model; choose another folder",
            code="model-folder-taken",
            path=folder / MODEL_FOLDER,
        )
    lightning.seed_everything(seed, workers=True, verbose=False)
    evaluation = RetrievalEvaluation(ExactIndex()) if evaluation is None else evaluation
    module = RetModule(
        retriever,
        ContrastiveLoss() if loss is None else loss,
        partial(torch.optim.AdamW, lr=1e-4) if optimizer is None else optimizer,
        WarmupCosine() if scheduler is None else scheduler,
        backbone_learning_rate_scale,
        micro_batch=micro_batch,
    )
    best_checkpoint = BestCheckpoint(str(folder / CHECKPOINTS_FOLDER), monitor=monitor)
    defaults = {"use_distributed_sampler": False, "logger": False, "num_sanity_val_steps": 0}
    trainer = Trainer(
        **{**defaults, **trainer_options},
        callbacks=[evaluation, *callbacks, best_checkpoint],
        plugins=[RunCheckpointIO()],
    )
    trainer.fit(module, datamodule=data)
    best = trainer.strategy.broadcast(find_best_checkpoint(folder) if trainer.is_global_zero else None)
    file = best[0].file if best else None
    trainer.test(module, datamodule=data, ckpt_path=file, weights_only=True, verbose=False)
    if trainer.is_global_zero:
        retriever.eval().save_pretrained(folder / MODEL_FOLDER)
        log.info("saved the model to %s", folder / MODEL_FOLDER)
    return evaluation.results["test"]
