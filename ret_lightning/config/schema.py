"""The top level of each command's config: which keys there are, of what type, and what must hold between them.

What stands inside a node with a `_target_` belongs to the signature of what it builds, not here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from ret_lightning.config.config_errors import Wrong, exclusive
from ret_lightning.config.run_rules import (
    limits_are_valid,
    metrics_are_logged,
    recall_at,
    something_is_trained,
    too_few_ranked,
)
from ret_lightning.config.search_rules import one_place, question
from ret_lightning.errors import ConfigError


@dataclass
class TrainConfig:
    """The keys of ret-train's config; see conf/train.yaml for what they mean."""

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
    def check(config: DictConfig) -> Iterator[Wrong]:
        """Pairs of a key and the error in its value, of what no single key can tell."""
        ranges = list(_in_range(config))
        yield from ranges
        if ranges:  # what follows compares values that are sound each for itself
            return
        if config.init_partial and config.init_from is None:
            text = "true needs init_from=<folder, hub id, training checkpoint or run folder>"
            yield "init_partial", ConfigError(text, code="init-partial-without-init-from", found=True)
        yield from _sizes_fit(config)
        yield from too_few_ranked(config.evaluation)
        yield from metrics_are_logged(config)
        yield from _run_ends(config)
        yield from _one_mixture(config)
        yield from _stream_is_open_ended(config)


@dataclass
class ExportConfig:
    """The keys of ret-export's config; see conf/export.yaml for what they mean."""

    checkpoint: str
    output: str
    overwrite: bool
    max_shard_size: int | str


@dataclass
class ReportConfig:
    """The keys of ret-report's config; see conf/report.yaml for what they mean."""

    runs: str
    output: str
    metric: str
    baseline: str | None
    gallery: int
    overwrite: bool

    @staticmethod
    def check(config: DictConfig) -> Iterator[Wrong]:
        """As `TrainConfig.check`."""
        yield from _values_in_range(config)


@dataclass
class CheckConfig:
    """The keys of ret-check's config; see conf/check.yaml for what they mean."""

    data: Any
    backbone: Any
    images: Literal["decode", "exist", "none"]
    image_share: float
    workers: int | None
    report: str | None
    seed: int

    @staticmethod
    def check(config: DictConfig) -> Iterator[Wrong]:
        """As in `TrainConfig`."""
        yield from _values_in_range(config)
        yield from _one_mixture(config)


@dataclass
class EvaluateConfig:
    """The keys of ret-evaluate's config; see conf/evaluate.yaml for what they mean."""

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
    def check(config: DictConfig) -> Iterator[Wrong]:
        """As `TrainConfig.check`."""
        yield from _values_in_range(config)
        recall_wrong = list(recall_at(config.evaluation))
        yield from recall_wrong or too_few_ranked(config.evaluation)
        yield from limits_are_valid(config.trainer)
        limit = f"limit_{config.split}_batches"
        if config.trainer.get(limit) == 0:
            yield f"trainer.{limit}", ConfigError("0 leaves nothing to evaluate", code="nothing-to-evaluate", found=0)


@dataclass
class IndexConfig:
    """The keys of ret-index's config; see conf/index.yaml for what they mean."""

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
    def check(config: DictConfig) -> Iterator[Wrong]:
        """As `TrainConfig.check`."""
        yield from _values_in_range(config)
        yield from one_place(config)
        if config.qdrant is not None and config.processes != 1:
            text = "several processes write into a folder only; leave it out with qdrant"
            yield "processes", ConfigError(text, code="qdrant-with-processes", found=config.processes)
        if config.checkpoint is None and not config.append:
            text = "a new index needs one: a run folder, a checkpoint file, a published folder or a hub id"
            yield "checkpoint", ConfigError(text, code="index-needs-checkpoint")


@dataclass
class SearchConfig:
    """The keys of ret-search's config; see conf/search.yaml for what they mean."""

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
    def check(config: DictConfig) -> Iterator[Wrong]:
        """As `TrainConfig.check`."""
        yield from _values_in_range(config)
        yield from one_place(config)
        yield from question(config)


# Key, smallest and largest value; None: open on that side. Keys that a config does not have, and null, are passed over.
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


def _values_in_range(config: DictConfig) -> Iterator[Wrong]:
    for key, smallest, largest in RANGES:
        value = OmegaConf.select(config, key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                text = f"{value} is not finite; give a finite number"
                yield key, ConfigError(text, code="number-not-finite", found=value)
            if smallest is not None and value < smallest:
                text = f"{value} is too small; {smallest} is the least"
                yield key, ConfigError(text, code="number-too-small", found=value, least=smallest)
            if largest is not None and value > largest:
                text = f"{value} is too large; {largest} is the most"
                yield key, ConfigError(text, code="number-too-large", found=value, most=largest)


def _in_range(config: DictConfig) -> Iterator[Wrong]:
    yield from _values_in_range(config)
    temperature = OmegaConf.select(config, "loss.temperature")
    if temperature is not None and not 0 < temperature < math.inf:
        text = f"{temperature} must be positive, and finite"
        yield "loss.temperature", ConfigError(text, code="temperature-not-positive", found=temperature)
    if OmegaConf.select(config, "loss.backend") == "fused" and config.trainer.get("accelerator") == "cpu":
        text = "fused needs a GPU, and trainer.accelerator is cpu; choose auto or chunked"
        yield "loss.backend", ConfigError(text, code="fused-loss-on-cpu", found="fused", allowed=("auto", "chunked"))
    yield from recall_at(config.evaluation)
    yield from limits_are_valid(config.trainer)
    yield from something_is_trained(config)


def _sizes_fit(config: DictConfig) -> Iterator[Wrong]:
    model = config.model
    heads = model.get("num_heads")
    if heads is None and model.hidden_size % 64:
        text = f"{model.hidden_size} is not a multiple of 64, so set model.num_heads to a divisor of it"
        yield "model.hidden_size", ConfigError(text, code="heads-not-set", found=model.hidden_size)
    if heads is not None and (heads < 1 or model.hidden_size % heads):
        text = f"{heads} does not divide model.hidden_size={model.hidden_size}"
        yield "model.num_heads", ConfigError(text, code="heads-not-divisor", found=heads, hidden_size=model.hidden_size)
    if not 1 <= model.num_tokens <= model.hidden_size:
        text = f"{model.num_tokens} is not from 1 to model.hidden_size={model.hidden_size}"
        yield (
            "model.num_tokens",
            ConfigError(text, code="tokens-out-of-range", found=model.num_tokens, most=model.hidden_size),
        )
    positions = OmegaConf.select(config, "backbone.text.max_position_embeddings")
    longest = OmegaConf.select(config, "backbone.tokenizer.max_length")
    if positions is not None and longest is not None and longest > positions:
        text = f"{longest} is more than backbone.text.max_position_embeddings={positions}"
        yield (
            "backbone.tokenizer.max_length",
            ConfigError(text, code="max-length-over-positions", found=longest, most=positions),
        )
    size = OmegaConf.select(config, "backbone.vision.image_size")
    shown = OmegaConf.select(config, "backbone.image_transform.size")
    if size is not None and shown is not None and size != shown:
        text = f"{shown} differs from backbone.vision.image_size={size}"
        yield "backbone.image_transform.size", ConfigError(text, code="image-sizes-differ", found=shown, expected=size)


def _run_ends(config: DictConfig) -> Iterator[Wrong]:
    trainer, scheduler = config.trainer, config.scheduler
    open_ended = trainer.get("max_steps", -1) == -1 and trainer.get("max_epochs", -1) == -1
    if open_ended and scheduler.get("horizon_steps") is None and scheduler.get("horizon_epochs") is None:
        text = "a run without trainer.max_epochs or trainer.max_steps needs it, or horizon_epochs"
        yield "scheduler.horizon_steps", ConfigError(text, code="horizon-missing")
    if scheduler.get("horizon_steps") is not None and scheduler.get("horizon_epochs") is not None:
        yield "scheduler.horizon_epochs", exclusive("horizon_steps")
    warmup, horizon = scheduler.get("warmup_steps", 0), scheduler.get("horizon_steps") or math.inf
    if warmup > horizon:
        text = f"{warmup} outlasts scheduler.horizon_steps={horizon}"
        yield "scheduler.warmup_steps", ConfigError(text, code="warmup-outlasts-horizon", found=warmup, most=horizon)


def _one_mixture(config: DictConfig) -> Iterator[Wrong]:
    if config.data.get("repeat") is not None and config.data.get("weights") is not None:
        yield "data.weights", exclusive("data.repeat")


def _stream_is_open_ended(config: DictConfig) -> Iterator[Wrong]:
    """How many batches an epoch has is not known when rows are streamed, unless the trainer limits them."""
    trainer, scheduler = config.trainer, config.scheduler
    limited = trainer.get("overfit_batches") or trainer.get("limit_train_batches")
    if config.data.get("reading") != "streaming" or (isinstance(limited, int) and not isinstance(limited, bool)):
        return
    why = "since data.reading=streaming does not know how many batches an epoch has"
    if scheduler.get("horizon_epochs") is not None:
        text = f"set horizon_steps instead, {why}"
        yield "scheduler.horizon_epochs", ConfigError(text, code="horizon-epochs-streaming")
    elif scheduler.get("horizon_steps") is None and trainer.get("max_steps", -1) == -1:
        text = f"set it, or trainer.max_steps, {why}"
        yield "scheduler.horizon_steps", ConfigError(text, code="horizon-missing-streaming")
    for name in ("limit_train_batches", "val_check_interval", "overfit_batches"):
        value = trainer.get(name)
        if isinstance(value, float) and value not in (0.0, 1.0):
            text = f"a share of an epoch, {value}, must be a whole number of batches, {why}"
            yield f"trainer.{name}", ConfigError(text, code="epoch-share-streaming", found=value)
