"""What must hold between the keys of ret-train and ret-evaluate so that a run does not fail after its first epoch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from ret_lightning.config.config_errors import Wrong, choices
from ret_lightning.config.targets.renamed_keys import current_metric
from ret_lightning.errors import ConfigError

TOP = 10  # K of MRR and nDCG: retrieval/metrics/per_query.py, which would bring torch along

_PACKAGES = ("ret_lightning.", "lightning.")  # whose callbacks log no metric that is unknown here
_MEANS = ("main_recall", "main_pseudo_recall")
_SECONDS = ("encode", "build", "search", "ann_recall")
_TRAIN = (
    "loss", "loss_query_to_passage", "loss_passage_to_query", "query_recall@1", "passage_recall@1", "learning_rate",
    "gradient_norm", "temperature", "skipped_steps", "samples_per_second",
)  # fmt: skip
# Namespaces whose metrics depend on the model and the data.
_OPEN = ("gate/", "mixture/", "data/bad_rows/", "val/index/")
_LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches", "val_check_interval")


def recall_at(evaluation: DictConfig) -> Iterator[Wrong]:
    """At least one K, each 1 or more."""
    found = tuple(evaluation.recall_at)
    if not found or min(found) < 1:
        text = f"{list(found)} needs at least one K, each 1 or more"
        yield "evaluation.recall_at", ConfigError(text, code="recall-at-too-small", found=found)


def too_few_ranked(evaluation: DictConfig) -> Iterator[Wrong]:
    """As many passages are ranked as the metrics need."""
    ranked, needed = evaluation.ranked, max(TOP, *evaluation.recall_at)
    if ranked < needed:
        text = f"{ranked} is less than the largest K of evaluation.recall_at, MRR@{TOP} and nDCG@{TOP}, {needed}"
        yield "evaluation.ranked", ConfigError(text, code="too-few-ranked", found=ranked, least=needed)


def metrics_are_logged(config: DictConfig) -> Iterator[Wrong]:
    """Callbacks monitor and draw metrics that are computed."""
    ks = tuple(config.evaluation.recall_at)
    for name, callback in config.callbacks.items():
        drawn = (callback or {}).get("at")
        if drawn is not None and drawn not in ks:
            text = f"recall@{drawn} is not computed; evaluation.recall_at={list(ks)}"
            yield f"callbacks.{name}.at", ConfigError(text, code="recall-not-computed", found=drawn, allowed=ks)
    subsets = config.data.get("subsets")
    names = None if subsets is None else list(subsets)
    yield from unlogged_monitors(config.callbacks, ks, names, own_loss=has_own_loss(config))


def has_own_loss(config: DictConfig) -> bool:
    """Whether the loss is the user's own, which may log any metric."""
    loss = config.get("loss") or {}
    return not str(loss.get("_target_", _PACKAGES[0])).startswith(_PACKAGES)


def unlogged_monitors(
    callbacks: Mapping[str, Any],
    ks: Sequence[int],
    subsets: Collection[str] | None,
    answered: Collection[str] | None = None,
    own_loss: bool = False,
) -> Iterator[Wrong]:
    """Each `callbacks.<name>.monitor` that names a metric which is never logged.

    With a callback of the user's own among them, every name is accepted: it may log any metric.

    Args:
        callbacks: the group `callbacks`.
        ks: `evaluation.recall_at`.
        subsets: that are validated; None: not known yet.
        answered: those of them whose queries have answers, which pseudo recall needs; None: not known yet.
        own_loss: whether the loss is the user's own, whose metrics are not known.
    """
    targets = [str(callback.get("_target_")) for callback in callbacks.values() if callback]
    if not all(target.startswith(_PACKAGES) for target in targets):
        return
    for name, callback in callbacks.items():
        monitor = (callback or {}).get("monitor")
        if isinstance(monitor, str) and not (own_loss and monitor.startswith("train/")):
            monitor = current_metric(monitor)
            yield from ((f"callbacks.{name}.monitor", wrong) for wrong in _unlogged(monitor, ks, subsets, answered))


def _unlogged(
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
            f"{monitor}: {scope} is not validated{choices(scope, scopes)}",
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


def limits_are_valid(trainer: Mapping[str, Any]) -> Iterator[Wrong]:
    """Limits are shares from 0 to 1, or whole numbers of batches."""
    for name in _LIMITS:
        value = trainer.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if value < 0 or not math.isfinite(value) or (value > 1 and value != int(value)):
            text = f"{value} is neither a share from 0.0 to 1.0 nor a whole number of batches"
            yield f"trainer.{name}", ConfigError(text, code="batch-limit-invalid", found=value)


def something_is_trained(config: DictConfig) -> Iterator[Wrong]:
    """Steps, batches and test batches are more than none."""
    trainer = config.trainer
    if trainer.get("max_epochs") == 0 or trainer.get("max_steps") == 0:
        text = "0 epochs or steps train nothing; -1 means no limit"
        yield "trainer.max_epochs", ConfigError(text, code="nothing-to-train", found=0)
    if trainer.get("limit_train_batches") == 0:
        text = "0 leaves nothing to train on; 1.0 is a whole epoch"
        yield "trainer.limit_train_batches", ConfigError(text, code="no-training-batches", found=0)
    if trainer.get("limit_test_batches") == 0 and config.test_with != "none":
        text = "0 leaves nothing to test; to leave the test out set test_with=none"
        yield "trainer.limit_test_batches", ConfigError(text, code="nothing-to-test", found=0)
