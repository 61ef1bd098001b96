"""Schemas of the top level of each command's config: keys, types, and checks between keys.

Keys inside a node with a `_target_` are checked against the signature of the target, not here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from ret_lightning.config.config_errors import KeyedError, exclusive_error
from ret_lightning.config.run_rules import (
    check_batch_limits,
    check_metrics,
    check_ranked,
    check_recall_at,
    check_run_length,
)
from ret_lightning.config.search_rules import check_index_target, check_query
from ret_lightning.errors import ConfigError


@dataclass
class TrainConfig:
    """Keys of the config of ret-train; conf/train.yaml describes each key."""

    seed: int
    output_dir: str
    resume: str | None
    dry_run: bool
    sweep: str | None
    test_with: Literal["best", "last", "none"]
    init_from: str | None
    init_partial: bool
    backbone_learning_rate_scale: float
    micro_batch: int | None
    compile: bool
    linear_backend: Literal["auto", "torch", "onednn"]
    on_nonfinite: Literal["stop", "skip"]
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
    def check(config: DictConfig) -> Iterator[KeyedError]:
        """Yield each key whose value is invalid or contradicts another key, with the error."""
        ranges = list(_check_train_ranges(config))
        yield from ranges
        if ranges:  # the following checks assume valid single values
            return
        if config.init_partial and config.init_from is None:
            text = "true requires init_from=<run folder, training checkpoint, folder or hub id>"
            yield "init_partial", ConfigError(text, code="init-partial-without-init-from", found=True)
        yield from _check_sizes(config)
        yield from check_ranked(config.evaluation)
        yield from check_metrics(config)
        yield from _check_schedule(config)
        yield from _check_mixture(config)
        yield from _check_streaming(config)


@dataclass
class ExportConfig:
    """Keys of the config of ret-export; conf/export.yaml describes each key."""

    checkpoint: str
    output: str
    overwrite: bool
    max_shard_size: int | str


@dataclass
class ReportConfig:
    """Keys of the config of ret-report; conf/report.yaml describes each key."""

    runs: str
    output: str
    metric: str
    baseline: str | None
    gallery: int
    overwrite: bool

    @staticmethod
    def check(config: DictConfig) -> Iterator[KeyedError]:
        """Yield each key whose value is invalid or contradicts another key, with the error."""
        yield from _check_ranges(config)


@dataclass
class CheckConfig:
    """Keys of the config of ret-check; conf/check.yaml describes each key."""

    data: Any
    backbone: Any
    images: Literal["decode", "exist", "none"]
    image_share: float
    workers: int | None
    report: str | None
    seed: int

    @staticmethod
    def check(config: DictConfig) -> Iterator[KeyedError]:
        """Yield each key whose value is invalid or contradicts another key, with the error."""
        yield from _check_ranges(config)
        yield from _check_mixture(config)


@dataclass
class EvaluateConfig:
    """Keys of the config of ret-evaluate; conf/evaluate.yaml describes each key."""

    checkpoint: str
    output_dir: str
    keep_embeddings: bool
    split: Literal["test", "val"]
    seed: int
    data: Any
    backbone: dict[str, Any]
    retrieval: Any
    evaluation: Any
    trainer: Any
    logger: dict[str, Any]
    callbacks: dict[str, Any]

    @staticmethod
    def check(config: DictConfig) -> Iterator[KeyedError]:
        """Yield each key whose value is invalid or contradicts another key, with the error."""
        yield from _check_ranges(config)
        recall_errors = list(check_recall_at(config.evaluation))
        yield from recall_errors or check_ranked(config.evaluation)
        yield from check_batch_limits(config.trainer)
        limit = f"limit_{config.split}_batches"
        if config.trainer.get(limit) == 0:
            yield (
                f"trainer.{limit}",
                ConfigError("expected at least one batch, got 0", code="nothing-to-evaluate", found=0),
            )


@dataclass
class IndexConfig:
    """Keys of the config of ret-index; conf/index.yaml describes each key."""

    checkpoint: str | None
    passages: str
    image_root: str | None
    retrieval: Any
    index: str | None
    append: bool
    discard: bool
    qdrant: str | None
    collection: str | None
    batch_size: int
    num_workers: int
    processes: int
    device: str | None
    dtype: Literal["bfloat16", "float16", "float32"] | None

    @staticmethod
    def check(config: DictConfig) -> Iterator[KeyedError]:
        """Yield each key whose value is invalid or contradicts another key, with the error."""
        yield from _check_ranges(config)
        yield from check_index_target(config)
        if config.qdrant is not None and config.processes != 1:
            text = f"expected 1 with qdrant, got {config.processes}; only an index folder supports several processes"
            yield "processes", ConfigError(text, code="qdrant-with-processes", found=config.processes)
        if config.checkpoint is None and not config.append:
            text = "a new index requires a run folder, training checkpoint, folder in the published layout or hub id"
            yield "checkpoint", ConfigError(text, code="index-needs-checkpoint")


@dataclass
class SearchConfig:
    """Keys of the config of ret-search; conf/search.yaml describes each key."""

    index: str | None
    qdrant: str | None
    collection: str | None
    query: str | None
    image: str | None
    queries: str | None
    image_root: str | None
    top_k: int
    output: str | None
    overwrite: bool
    checkpoint: str | None
    verify: bool
    batch_size: int
    num_workers: int
    device: str | None

    @staticmethod
    def check(config: DictConfig) -> Iterator[KeyedError]:
        """Yield each key whose value is invalid or contradicts another key, with the error."""
        yield from _check_ranges(config)
        yield from check_index_target(config)
        yield from check_query(config)


# Key, smallest and largest value; None: no bound. Missing keys and null values are skipped.
RANGES: tuple[tuple[str, float | None, float | None], ...] = (
    ("seed", 0, 2**32 - 1),
    ("batch_size", 1, None),
    ("num_workers", 0, None),
    ("top_k", 1, None),
    ("data.batch_size", 1, None),
    ("data.eval_batch_size", 1, None),
    ("data.num_workers", 0, None),
    ("data.max_image_pixels", 1, 178_956_970),  # Pillow refuses more
    ("data.shuffle_buffer", 1, None),
    ("data.limit", 1, None),
    ("data.validation_pool", 1, None),
    ("data.holdout_rows", 1, None),
    ("data.holdout_fraction", 0, 1),
    ("data.max_bad_fraction", 0, 1),
    ("image_share", 0, 1),
    ("workers", 1, None),
    ("processes", 1, None),
    ("micro_batch", 1, None),
    ("model.num_tokens", 1, None),
    ("model.hidden_size", 1, None),
    ("model.num_heads", 1, None),
    ("model.intermediate_size", 1, None),
    ("model.output_size", 0, None),
    ("model.dropout", 0, 1),
    ("model.attention_dropout", 0, 1),
    ("optimizer.lr", 0, None),
    ("optimizer.weight_decay", 0, None),
    ("scheduler.warmup_steps", 0, None),
    ("scheduler.horizon_steps", 1, None),
    ("scheduler.floor", 0, 1),
    ("evaluation.ranked", 1, None),
    ("evaluation.ann_recall_sample", 0, None),
    *((f"retrieval.{name}", 1, None) for name in ("block", "candidates", "hits", "nlist", "nprobe", "m", "nbits")),
    *((f"retrieval.{name}", 1, None) for name in ("M", "training_points", "repetitions", "hyperplanes", "projection")),
    ("retrieval.seed", 0, 2**31 - 1),
    ("trainer.max_epochs", -1, None),
    ("trainer.max_steps", -1, None),
    ("trainer.num_nodes", 1, None),
    ("trainer.accumulate_grad_batches", 1, None),
    ("trainer.log_every_n_steps", 1, None),
    ("trainer.check_val_every_n_epoch", 1, None),
    ("gallery", 0, 500),
)


def _check_ranges(config: DictConfig) -> Iterator[KeyedError]:
    for key, smallest, largest in RANGES:
        value = OmegaConf.select(config, key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                text = f"expected a finite number, got {value}"
                yield key, ConfigError(text, code="number-not-finite", found=value)
            if smallest is not None and value < smallest:
                text = f"expected at least {smallest}, got {value}"
                yield key, ConfigError(text, code="number-too-small", found=value, least=smallest)
            if largest is not None and value > largest:
                text = f"expected at most {largest}, got {value}"
                yield key, ConfigError(text, code="number-too-large", found=value, most=largest)


def _check_train_ranges(config: DictConfig) -> Iterator[KeyedError]:
    yield from _check_ranges(config)
    temperature = OmegaConf.select(config, "loss.temperature")
    if temperature is not None and not 0 < temperature < math.inf:
        text = f"expected a positive finite number, got {temperature}"
        yield "loss.temperature", ConfigError(text, code="temperature-not-positive", found=temperature)
    if OmegaConf.select(config, "loss.backend") == "fused" and config.trainer.get("accelerator") == "cpu":
        text = "fused requires a GPU, but trainer.accelerator=cpu; set auto or chunked"
        yield "loss.backend", ConfigError(text, code="fused-loss-on-cpu", found="fused", allowed=("auto", "chunked"))
    yield from check_recall_at(config.evaluation)
    yield from check_batch_limits(config.trainer)
    yield from check_run_length(config)


def _check_sizes(config: DictConfig) -> Iterator[KeyedError]:
    model = config.model
    heads = model.get("num_heads")
    if heads is None and model.hidden_size % 64:
        text = f"{model.hidden_size} is not a multiple of 64; set model.num_heads to a divisor of it"
        yield "model.hidden_size", ConfigError(text, code="heads-not-set", found=model.hidden_size)
    if heads is not None and (heads < 1 or model.hidden_size % heads):
        text = f"expected a divisor of model.hidden_size={model.hidden_size}, got {heads}"
        yield "model.num_heads", ConfigError(text, code="heads-not-divisor", found=heads, hidden_size=model.hidden_size)
    if not 1 <= model.num_tokens <= model.hidden_size:
        text = f"expected 1 to {model.hidden_size} (model.hidden_size), got {model.num_tokens}"
        yield (
            "model.num_tokens",
            ConfigError(text, code="tokens-out-of-range", found=model.num_tokens, most=model.hidden_size),
        )
    positions = OmegaConf.select(config, "backbone.text.max_position_embeddings")
    longest = OmegaConf.select(config, "backbone.tokenizer.max_length")
    if positions is not None and longest is not None and longest > positions:
        text = f"expected at most {positions} (backbone.text.max_position_embeddings), got {longest}"
        yield (
            "backbone.tokenizer.max_length",
            ConfigError(text, code="max-length-over-positions", found=longest, most=positions),
        )
    size = OmegaConf.select(config, "backbone.vision.image_size")
    transformed = OmegaConf.select(config, "backbone.image_transform.size")
    if size is not None and transformed is not None and size != transformed:
        text = f"expected {size} (backbone.vision.image_size), got {transformed}"
        error = ConfigError(text, code="image-sizes-differ", found=transformed, expected=size)
        yield "backbone.image_transform.size", error


def _check_schedule(config: DictConfig) -> Iterator[KeyedError]:
    trainer, scheduler = config.trainer, config.scheduler
    open_ended = trainer.get("max_steps", -1) == -1 and trainer.get("max_epochs", -1) == -1
    if open_ended and scheduler.get("horizon_steps") is None and scheduler.get("horizon_epochs") is None:
        text = "the length of the schedule is unknown; set it, horizon_epochs, trainer.max_epochs or trainer.max_steps"
        yield "scheduler.horizon_steps", ConfigError(text, code="horizon-missing")
    if scheduler.get("horizon_steps") is not None and scheduler.get("horizon_epochs") is not None:
        yield "scheduler.horizon_epochs", exclusive_error("horizon_steps")
    warmup, horizon = scheduler.get("warmup_steps", 0), scheduler.get("horizon_steps") or math.inf
    if warmup > horizon:
        text = f"expected at most {horizon} (scheduler.horizon_steps), got {warmup}"
        yield "scheduler.warmup_steps", ConfigError(text, code="warmup-outlasts-horizon", found=warmup, most=horizon)


def _check_mixture(config: DictConfig) -> Iterator[KeyedError]:
    if config.data.get("repeat") is not None and config.data.get("weights") is not None:
        yield "data.weights", exclusive_error("data.repeat")


def _check_streaming(config: DictConfig) -> Iterator[KeyedError]:
    """Check settings that depend on the length of an epoch, which is unknown when rows are streamed."""
    trainer, scheduler = config.trainer, config.scheduler
    limited = trainer.get("overfit_batches") or trainer.get("limit_train_batches")
    if config.data.get("reading") != "streaming" or (isinstance(limited, int) and not isinstance(limited, bool)):
        return
    why = "because data.reading=streaming does not know the number of batches per epoch"
    if scheduler.get("horizon_epochs") is not None:
        text = f"set horizon_steps instead, {why}"
        yield "scheduler.horizon_epochs", ConfigError(text, code="horizon-epochs-streaming")
    elif scheduler.get("horizon_steps") is None and trainer.get("max_steps", -1) == -1:
        text = f"set it, or trainer.max_steps, {why}"
        yield "scheduler.horizon_steps", ConfigError(text, code="horizon-missing-streaming")
    for name in ("limit_train_batches", "val_check_interval", "overfit_batches"):
        value = trainer.get(name)
        if isinstance(value, float) and value not in (0.0, 1.0):
            text = f"expected an integer number of batches, got the fraction {value}, {why}"
            yield f"trainer.{name}", ConfigError(text, code="epoch-share-streaming", found=value)
