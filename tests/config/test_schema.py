"""Ranges and contradictions in the config of ret-train: key, code and values of each error."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from ret_lightning.config.schema import RANGES, IndexConfig, TrainConfig
from ret_lightning.errors import ConfigError
from tests.support.paths import CONF


def problems(*overrides: str) -> dict[str, ConfigError]:
    with initialize_config_module("ret_lightning.conf", version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    return dict(TrainConfig.check(config))


def test_shipped_configs_are_valid() -> None:
    assert problems() == {}
    assert problems("experiment=demo") == {}
    assert problems("data=m2kr", "data.root=/nowhere", "backbone=clip_vit_l", "model=ret", "trainer=ddp") == {}


def test_all_values_out_of_range_are_reported() -> None:
    errors = problems(
        "data.batch_size=0", "seed=-1", "model.dropout=1.5", "loss.temperature=0", "evaluation.recall_at=[]"
    )
    assert set(errors) == {"data.batch_size", "seed", "model.dropout", "loss.temperature", "evaluation.recall_at"}
    error = errors["data.batch_size"]
    assert (error.code, error.found, error.least) == ("number-too-small", 0, 1)
    error = errors["model.dropout"]
    assert (error.code, error.found, error.most) == ("number-too-large", 1.5, 1)
    errors = problems("optimizer.lr=nan", "loss.temperature=nan")
    assert errors["optimizer.lr"].code == "number-not-finite"
    assert errors["loss.temperature"].code == "temperature-not-positive"


@pytest.mark.parametrize(
    ("overrides", "key", "code", "values"),
    [
        (["model.hidden_size=100"], "model.num_heads", "heads-not-divisor", {"found": 3, "hidden_size": 100}),
        (["model.hidden_size=100", "model.num_heads=null"], "model.hidden_size", "heads-not-set", {"found": 100}),
        (
            ["loss.backend=fused"],
            "loss.backend",
            "fused-loss-on-cpu",
            {"found": "fused", "allowed": ("auto", "chunked")},
        ),
        (["model.num_tokens=97"], "model.num_tokens", "tokens-out-of-range", {"found": 97, "most": 96}),
        (
            ["backbone.image_transform.size=32"],
            "backbone.image_transform.size",
            "image-sizes-differ",
            {"found": 32, "expected": 40},
        ),
        (
            ["backbone.tokenizer.max_length=200"],
            "backbone.tokenizer.max_length",
            "max-length-over-positions",
            {"found": 200, "most": 77},
        ),
        (["evaluation.ranked=50"], "evaluation.ranked", "too-few-ranked", {"found": 50, "least": 100}),
        (
            ["callbacks.recall_curves.at=4", "evaluation.recall_at=[1,5,10]"],
            "callbacks.recall_curves.at",
            "recall-not-computed",
            {"found": 4, "allowed": (1, 5, 10)},
        ),
        (
            ["evaluation.recall_at=[1,5]", "evaluation.ranked=9"],
            "evaluation.ranked",
            "too-few-ranked",
            {"found": 9, "least": 10},
        ),
        (["trainer.max_epochs=-1"], "scheduler.horizon_steps", "horizon-missing", {}),
        (["trainer.max_epochs=0"], "trainer.max_epochs", "nothing-to-train", {"found": 0}),
        (["trainer.limit_test_batches=0"], "trainer.limit_test_batches", "nothing-to-test", {"found": 0}),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches", "no-training-batches", {"found": 0}),
        (["trainer.limit_val_batches=1.5"], "trainer.limit_val_batches", "batch-limit-invalid", {"found": 1.5}),
        (["trainer.limit_train_batches=-1"], "trainer.limit_train_batches", "batch-limit-invalid", {"found": -1}),
        (["trainer.val_check_interval=-0.5"], "trainer.val_check_interval", "batch-limit-invalid", {"found": -0.5}),
        (["+trainer.overfit_batches=2.5"], "trainer.overfit_batches", "batch-limit-invalid", {"found": 2.5}),
        (
            ["scheduler.horizon_steps=10", "scheduler.horizon_epochs=1"],
            "scheduler.horizon_epochs",
            "exclusive-settings",
            {"other": "horizon_steps"},
        ),
        (
            ["data.repeat={name:2}", "data.weights={name:1}"],
            "data.weights",
            "exclusive-settings",
            {"other": "data.repeat"},
        ),
        (["data.shuffle_buffer=0"], "data.shuffle_buffer", "number-too-small", {"found": 0, "least": 1}),
        (["data.limit=0"], "data.limit", "number-too-small", {"found": 0, "least": 1}),
        (["data.reading=streaming"], "scheduler.horizon_steps", "horizon-missing-streaming", {}),
        (
            ["data.reading=streaming", "scheduler.horizon_epochs=3"],
            "scheduler.horizon_epochs",
            "horizon-epochs-streaming",
            {},
        ),
        (
            ["data.reading=streaming", "trainer.max_steps=9", "trainer.limit_train_batches=0.5"],
            "trainer.limit_train_batches",
            "epoch-share-streaming",
            {"found": 0.5},
        ),
        (
            ["data.reading=streaming", "trainer.max_steps=9", "trainer.val_check_interval=0.25"],
            "trainer.val_check_interval",
            "epoch-share-streaming",
            {"found": 0.25},
        ),
        (
            ["scheduler.horizon_steps=10"],
            "scheduler.warmup_steps",
            "warmup-outlasts-horizon",
            {"found": 100, "most": 10},
        ),
    ],
)
def test_contradiction_has_key_and_values(overrides: list[str], key: str, code: str, values: dict) -> None:
    error = problems(*overrides)[key]
    assert error.code == code
    assert error.values == values


@pytest.mark.parametrize(
    ("monitor", "options", "code"),
    [
        ("val/mean/recall@5", ["evaluation.recall_at=[1,10]"], "monitor-not-computed"),
        ("val/mean/mrr@5", [], "monitor-not-computed"),
        ("val/mean/recal@5", [], "monitor-not-computed"),
        ("va/mean/recall@5", [], "monitor-not-computed"),
        ("val/recall@5", [], "monitor-not-computed"),
        ("val/name/main_recall", [], "monitor-not-computed"),
        ("val/seconds/encod", [], "monitor-not-computed"),
        ("train/los", [], "monitor-not-computed"),
        ("val/nam/recall@5", ["data.subsets=[name,case]"], "monitored-subset-not-validated"),
    ],
)
def test_monitor_of_an_unlogged_metric_is_refused(monitor: str, options: list[str], code: str) -> None:
    for callback in ("checkpoint", "early_stopping"):
        added = f"+callbacks.early_stopping={{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: {monitor}}}"
        own = added if callback == "early_stopping" else f"callbacks.checkpoint.monitor={monitor}"
        extra = ["callbacks.checkpoint.monitor=val/mean/mrr@10"] if callback == "early_stopping" else []
        (key, error), *others = problems(own, *extra, *options).items()
        assert (key, error.code, others) == (f"callbacks.{callback}.monitor", code, [])
        assert error.found == (monitor if code == "monitor-not-computed" else "nam")


@pytest.mark.parametrize(
    "monitor",
    [
        "val/mean/main_recall", "val/mean/pseudo_recall@1", "val/name/fractional_recall@5", "val/name/ndcg@10",
        "val/seconds/encode", "train/loss",
        "gate/query/text/step_00", "mixture/name", "val/index/ann_recall@10",
    ],
)  # fmt: skip
def test_monitor_of_a_logged_metric_is_accepted(monitor: str) -> None:
    assert problems(f"callbacks.checkpoint.monitor={monitor}") == {}


def test_own_callback_may_log_what_is_monitored() -> None:
    own = "+callbacks.own={_target_: my_package.Accuracy}"
    assert problems("callbacks.checkpoint.monitor=val/accuracy", own) == {}


def test_ranges_are_of_existing_keys() -> None:
    """A misspelt key would never be checked."""
    with initialize_config_module("ret_lightning.conf", version_base="1.3"):
        options = ["data=glyphs", "data=m2kr", *(f"retrieval={p.stem}" for p in CONF.glob("retrieval/*.yaml"))]
        configs = [compose("train", [option]) for option in options] + [
            compose(name) for name in ("report", "check", "index", "search")
        ]
    absent = [
        key for key, _, _ in RANGES if all(OmegaConf.select(c, key, default="absent") == "absent" for c in configs)
    ]
    assert absent == []


def test_stream_of_known_length_is_valid() -> None:
    streaming = "data.reading=streaming"
    assert problems(streaming, "trainer.max_steps=500") == {}
    assert problems(streaming, "scheduler.horizon_steps=500") == {}
    assert problems(streaming, "trainer.limit_train_batches=80") == {}  # an epoch of known length


@pytest.mark.parametrize("processes", [2, 8])
def test_qdrant_is_written_by_one_process(processes: int) -> None:
    with initialize_config_module("ret_lightning.conf", version_base="1.3"):
        config = compose("index", overrides=["qdrant=store", "collection=c", "checkpoint=x", f"processes={processes}"])
    error = dict(IndexConfig.check(config))["processes"]
    assert (error.code, error.found) == ("qdrant-with-processes", processes)
