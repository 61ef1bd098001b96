"""Checks between the keys of ret-train and ret-evaluate, so that a run does not fail after its first epoch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from ret_lightning.config.config_errors import KeyedError, choices
from ret_lightning.config.targets.renamed_keys import current_metric
from ret_lightning.errors import ConfigError

TOP = 10  # K of MRR and nDCG, a copy of retrieval.metrics.per_query.TOP, whose module imports torch

_PACKAGES = ("ret_lightning.", "lightning.")  # all metrics that their callbacks log are listed here
_MEANS = ("main_recall", "main_pseudo_recall")
_SECONDS = ("encode", "build", "search", "ann_recall")
_TRAIN = (
    "loss", "loss_query_to_passage", "loss_passage_to_query", "query_recall@1", "passage_recall@1", "learning_rate",
    "gradient_norm", "temperature", "skipped_steps", "samples_per_second",
)  # fmt: skip
# Namespaces with metric names that depend on the model and the data.
_OPEN = ("gate/", "mixture/", "data/bad_rows/", "val/index/")
_LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches", "val_check_interval")


def check_recall_at(evaluation: DictConfig) -> Iterator[KeyedError]:
    """Check that `evaluation.recall_at` has at least one K and that each K is 1 or more."""
    found = tuple(evaluation.recall_at)
    if not found or min(found) < 1:
        text = f"expected at least one K, each 1 or more, got {list(found)}"
        yield "evaluation.recall_at", ConfigError(text, code="recall-at-too-small", found=found)


def check_ranked(evaluation: DictConfig) -> Iterator[KeyedError]:
    """Check that `evaluation.ranked` is at least the largest K of the metrics."""
    ranked, needed = evaluation.ranked, max(TOP, *evaluation.recall_at)
    if ranked < needed:
        text = (
            f"expected at least {needed}, the largest K of evaluation.recall_at, MRR@{TOP} and nDCG@{TOP}, got {ranked}"
        )
        yield "evaluation.ranked", ConfigError(text, code="too-few-ranked", found=ranked, least=needed)


def check_metrics(config: DictConfig) -> Iterator[KeyedError]:
    """Check that callbacks monitor and plot metrics that are computed."""
    ks = tuple(config.evaluation.recall_at)
    for name, callback in config.callbacks.items():
        plotted = (callback or {}).get("at")
        if plotted is not None and plotted not in ks:
            text = f"recall@{plotted} is not computed; expected one of evaluation.recall_at={list(ks)}"
            yield f"callbacks.{name}.at", ConfigError(text, code="recall-not-computed", found=plotted, allowed=ks)
    subsets = config.data.get("subsets")
    names = None if subsets is None else list(subsets)
    yield from find_unlogged_monitors(config.callbacks, ks, names, own_loss=has_own_loss(config))


def has_own_loss(config: DictConfig) -> bool:
    """Return whether the loss is a class of the user, which may log any metric."""
    loss = config.get("loss") or {}
    return not str(loss.get("_target_", _PACKAGES[0])).startswith(_PACKAGES)


def find_unlogged_monitors(
    callbacks: Mapping[str, Any],
    ks: Sequence[int],
    subsets: Collection[str] | None,
    answered: Collection[str] | None = None,
    own_loss: bool = False,
) -> Iterator[KeyedError]:
    """Yield an error for each `callbacks.<name>.monitor` that names a metric which is never logged.

    If a callback is a class of the user, every name is accepted, because that class may log any metric.

    Args:
        callbacks: the config group `callbacks`.
        ks: `evaluation.recall_at`.
        subsets: names of the validated subsets; None if not known yet.
        answered: names of the subsets whose queries have answers, required for pseudo recall; None if not known yet.
        own_loss: whether the loss is a class of the user; then every `train/` metric is accepted.
    """
    targets = [str(callback.get("_target_")) for callback in callbacks.values() if callback]
    if not all(target.startswith(_PACKAGES) for target in targets):
        return
    for name, callback in callbacks.items():
        monitor = (callback or {}).get("monitor")
        if isinstance(monitor, str) and not (own_loss and monitor.startswith("train/")):
            monitor = current_metric(monitor)
            yield from (
                (f"callbacks.{name}.monitor", error) for error in _check_monitor(monitor, ks, subsets, answered)
            )


def _check_monitor(
    monitor: str, ks: Sequence[int], subsets: Collection[str] | None, answered: Collection[str] | None
) -> Iterator[ConfigError]:
    if monitor.startswith(_OPEN) or monitor in {f"train/{name}" for name in _TRAIN} | {"loss"}:
        return
    recalls = [f"{kind}@{k}" for kind in ("recall", "fractional_recall") for k in ks]
    pseudo = [f"pseudo_recall@{k}" for k in ks]
    ranks = [f"mrr@{TOP}", f"ndcg@{TOP}"]
    split, _, rest = monitor.partition("/")
    scope, _, metric = rest.rpartition("/")
    if split != "val" or not scope:
        allowed = [
            *(f"train/{name}" for name in _TRAIN),
            *(f"val/mean/{m}" for m in (*recalls, *pseudo, *ranks, *_MEANS)),
        ]
        yield _not_computed(monitor, allowed)
        return
    if subsets is not None and scope not in (*subsets, "mean", "seconds"):
        scopes = ("mean", *subsets)
        yield ConfigError(
            f"{monitor}: no validation on the subset {scope}{choices(scope, scopes)}",
            code="monitored-subset-not-validated",
            found=scope,
            allowed=scopes,
        )
        return
    has_answers = answered is None or bool(answered if scope == "mean" else scope in answered)
    metrics = [*recalls, *(pseudo if has_answers else ()), *ranks, *(_MEANS if scope == "mean" else ())]
    if scope == "seconds":
        metrics = list(_SECONDS)
    if metric not in metrics:
        yield _not_computed(monitor, [f"val/{scope}/{each}" for each in metrics])


def _not_computed(monitor: str, allowed: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{monitor} is not computed{choices(monitor, allowed)}; evaluation.recall_at sets the K of recall",
        code="monitor-not-computed",
        found=monitor,
        allowed=tuple(allowed),
    )


def check_batch_limits(trainer: Mapping[str, Any]) -> Iterator[KeyedError]:
    """Check that each batch limit is a fraction from 0 to 1 or an integer number of batches."""
    for name in _LIMITS:
        value = trainer.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if value < 0 or not math.isfinite(value) or (value > 1 and value != int(value)):
            text = f"expected a fraction from 0.0 to 1.0 or an integer number of batches, got {value}"
            yield f"trainer.{name}", ConfigError(text, code="batch-limit-invalid", found=value)


def check_run_length(config: DictConfig) -> Iterator[KeyedError]:
    """Check that epochs, steps, training batches and test batches are not 0."""
    trainer = config.trainer
    if trainer.get("max_epochs") == 0 or trainer.get("max_steps") == 0:
        text = "expected at least one epoch and one step, or -1 for no limit, got 0"
        yield "trainer.max_epochs", ConfigError(text, code="nothing-to-train", found=0)
    if trainer.get("limit_train_batches") == 0:
        text = "expected at least one training batch, got 0; 1.0 is a whole epoch"
        yield "trainer.limit_train_batches", ConfigError(text, code="no-training-batches", found=0)
    if trainer.get("limit_test_batches") == 0 and config.test_with != "none":
        text = "expected at least one test batch, got 0; to skip the test, set test_with=none"
        yield "trainer.limit_test_batches", ConfigError(text, code="nothing-to-test", found=0)
