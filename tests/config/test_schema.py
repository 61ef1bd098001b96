"""Ranges and contradictions of ret-train's config, each told with its key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from ret_lightning.config.schema import RANGES, TrainConfig

CONF = Path(__file__).parents[2] / "conf"


def mistakes(*overrides: str) -> dict[str, str]:
    with initialize_config_module("ret_lightning.conf", version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    return dict(TrainConfig.check(config))


def test_what_is_shipped_is_sound() -> None:
    assert mistakes() == {}
    assert mistakes("experiment=demo") == {}
    assert mistakes("data=m2kr", "data.root=/nowhere", "backbone=clip_vit_l", "model=ret", "trainer=ddp") == {}


def test_all_values_out_of_range_are_told_at_once() -> None:
    told = mistakes(
        "data.batch_size=0", "seed=-1", "model.dropout=1.5", "loss.temperature=0", "evaluation.recall_at=[]"
    )
    assert set(told) == {"data.batch_size", "seed", "model.dropout", "loss.temperature", "evaluation.recall_at"}
    assert told["data.batch_size"] == "0 is too small; 1 is the least"
    assert told["model.dropout"] == "1.5 is too large; 1 is the most"
    told = mistakes("optimizer.lr=nan", "loss.temperature=nan")
    assert told["optimizer.lr"] == "nan is no number to reckon with; give a finite one"
    assert told["loss.temperature"] == "nan must be positive, and finite"


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        (["model.hidden_size=100"], "model.num_heads", "3 does not divide model.hidden_size=100"),
        (["model.hidden_size=100", "model.num_heads=null"], "model.hidden_size", "not a multiple of 64"),
        (["loss.backend=fused"], "loss.backend", "fused needs a GPU, and trainer.accelerator is cpu"),
        (["model.num_tokens=97"], "model.num_tokens", "97 is not from 1 to model.hidden_size=96"),
        (
            ["backbone.image_transform.size=32"],
            "backbone.image_transform.size",
            "32 differs from backbone.vision.image_size=40",
        ),
        (
            ["backbone.tokenizer.max_length=200"],
            "backbone.tokenizer.max_length",
            "200 is more than backbone.text.max_pos",
        ),
        (["evaluation.ranked=50"], "evaluation.ranked", "50 is less than the largest K"),
        (["evaluation.recall_at=[1,10]"], "callbacks.checkpoint.monitor", "val/mean/recall@5 is not computed"),
        (["callbacks.recall_curves.at=4"], "callbacks.recall_curves.at", "recall@4 is not computed"),
        (["callbacks.checkpoint.monitor=val/mean/mrr@5"], "callbacks.checkpoint.monitor", "MRR and nDCG are at 10"),
        (["evaluation.recall_at=[1,5]", "evaluation.ranked=9"], "evaluation.ranked", "MRR@10 and nDCG@10, 10"),
        (["trainer.max_epochs=-1"], "scheduler.horizon_steps", "a run without trainer.max_epochs or trainer.max_steps"),
        (["trainer.max_epochs=0"], "trainer.max_epochs", "train nothing"),
        (["trainer.limit_test_batches=0"], "trainer.limit_test_batches", "set test_with=none"),
        (["scheduler.horizon_steps=10", "scheduler.horizon_epochs=1"], "scheduler.horizon_epochs", "not both"),
        (["data.repeat={name:2}", "data.weights={name:1}"], "data.weights", "not both"),
        (["data.shuffle_buffer=0"], "data.shuffle_buffer", "0 is too small"),
        (["data.limit=0"], "data.limit", "0 is too small"),
        (
            ["data.reading=streaming"],
            "scheduler.horizon_steps",
            "set it, or trainer.max_steps, since data.reading=streaming",
        ),
        (
            ["data.reading=streaming", "scheduler.horizon_epochs=3"],
            "scheduler.horizon_epochs",
            "set horizon_steps instead",
        ),
        (
            ["data.reading=streaming", "trainer.max_steps=9", "trainer.limit_train_batches=0.5"],
            "trainer.limit_train_batches",
            "a share of an epoch, 0.5, must be a whole number of batches",
        ),
        (
            ["data.reading=streaming", "trainer.max_steps=9", "trainer.val_check_interval=0.25"],
            "trainer.val_check_interval",
            "a share of an epoch, 0.25",
        ),
        (["scheduler.horizon_steps=10"], "scheduler.warmup_steps", "100 outlasts scheduler.horizon_steps=10"),
    ],
)
def test_contradictions_name_the_key(overrides: list[str], key: str, message: str) -> None:
    told = mistakes(*overrides)
    assert key in told
    assert message in told[key]


def test_the_ranges_are_of_keys_that_exist() -> None:
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


def test_a_stream_whose_end_is_known_is_sound() -> None:
    streaming = "data.reading=streaming"
    assert mistakes(streaming, "trainer.max_steps=500") == {}
    assert mistakes(streaming, "scheduler.horizon_steps=500") == {}
    assert mistakes(streaming, "trainer.limit_train_batches=80") == {}  # an epoch of known length
