"""The top level of each command's config: which keys there are, of what type, and what must hold between them.

What stands inside a node with a `_target_` belongs to the signature of what it builds, not here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf


@dataclass
class TrainConfig:
    """The keys of ret-train's config; see conf/train.yaml for what they mean."""

    seed: int
    output_dir: str
    test_with: Literal["best", "last", "none"]
    backbone_learning_rate_scale: float
    data: Any
    backbone: Any
    model: Any
    recurrence: Any
    gate: Any
    loss: Any
    retrieval: Any
    evaluation: Any
    optimizer: Any
    scheduler: Any
    trainer: Any
    logger: dict[str, Any]
    callbacks: dict[str, Any]

    @staticmethod
    def check(config: DictConfig) -> Iterator[tuple[str, str]]:
        """Pairs of a key and what is wrong with it, of what no single key can tell."""
        yield from _sizes_fit(config)
        yield from _metric_is_logged(config)
        yield from _run_ends(config)


def _sizes_fit(config: DictConfig) -> Iterator[tuple[str, str]]:
    model = config.model
    heads = model.get("num_heads")
    if heads is None and model.hidden_size % 64:
        yield (
            "model.hidden_size",
            f"{model.hidden_size} is not a multiple of 64, so set model.num_heads to a divisor of it",
        )
    if heads is not None and (heads < 1 or model.hidden_size % heads):
        yield "model.num_heads", f"{heads} does not divide model.hidden_size={model.hidden_size}"
    if not 1 <= model.num_tokens <= model.hidden_size:
        yield "model.num_tokens", f"{model.num_tokens} is not from 1 to model.hidden_size={model.hidden_size}"
    size = OmegaConf.select(config, "backbone.vision.image_size")
    shown = OmegaConf.select(config, "backbone.image_transform.size")
    if size is not None and shown is not None and size != shown:
        yield "backbone.image_transform.size", f"{shown} differs from backbone.vision.image_size={size}"


def _metric_is_logged(config: DictConfig) -> Iterator[tuple[str, str]]:
    """A checkpoint callback that watches a recall which is never computed would fail after the first epoch."""
    evaluation = config.evaluation
    if evaluation.ranked < max(evaluation.recall_at):
        yield (
            "evaluation.ranked",
            f"{evaluation.ranked} is less than the largest K of evaluation.recall_at, {max(evaluation.recall_at)}",
        )
    for name, callback in config.callbacks.items():
        monitor = (callback or {}).get("monitor")
        if isinstance(monitor, str) and monitor.startswith("val/") and "recall@" in monitor:
            at = monitor.rpartition("@")[2]
            if at not in {str(k) for k in evaluation.recall_at}:
                yield (
                    f"callbacks.{name}.monitor",
                    f"{monitor} is not computed; evaluation.recall_at={list(evaluation.recall_at)}",
                )


def _run_ends(config: DictConfig) -> Iterator[tuple[str, str]]:
    trainer, scheduler = config.trainer, config.scheduler
    open_ended = trainer.get("max_steps", -1) == -1 and trainer.get("max_epochs", -1) == -1
    if open_ended and scheduler.get("horizon_steps") is None and scheduler.get("horizon_epochs") is None:
        yield (
            "scheduler.horizon_steps",
            "a run without trainer.max_epochs or trainer.max_steps needs it, or horizon_epochs",
        )
    if scheduler.get("horizon_steps") is not None and scheduler.get("horizon_epochs") is not None:
        yield "scheduler.horizon_epochs", "set it or horizon_steps, not both"
    warmup, horizon = scheduler.get("warmup_steps", 0), scheduler.get("horizon_steps") or math.inf
    if warmup > horizon:
        yield "scheduler.warmup_steps", f"{warmup} outlasts scheduler.horizon_steps={horizon}"
