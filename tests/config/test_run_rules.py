"""Checks between the keys of a run: key and code of each error, and monitors against computed metrics."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from ret_lightning.config import run_rules
from ret_lightning.config.config_errors import KeyedError
from ret_lightning.config.run_rules import (
    check_batch_limits,
    check_metrics,
    check_ranked,
    check_recall_at,
    check_run_length,
    find_unlogged_monitors,
    has_own_loss,
)
from ret_lightning.retrieval import Ranking
from ret_lightning.retrieval.metrics import per_query

KS = (1, 5)


def codes(errors: list[KeyedError]) -> list[tuple[str, str]]:
    return [(key, error.code) for key, error in errors]


def monitored(monitor: str, target: str = "lightning.pytorch.callbacks.ModelCheckpoint", **options) -> list:
    callbacks = {"best": {"_target_": target, "monitor": monitor}, "none": None}
    return codes(
        list(find_unlogged_monitors(callbacks, options.pop("ks", KS), options.pop("subsets", None), **options))
    )


@pytest.mark.parametrize(("ks", "valid"), [([1], True), ([5, 1], True), ([], False), ([5, 0], False)])
def test_recall_has_at_least_one_k(ks: list[int], valid: bool) -> None:
    found = codes(list(check_recall_at(OmegaConf.create({"recall_at": ks}))))
    assert found == ([] if valid else [("evaluation.recall_at", "recall-at-too-small")])


@pytest.mark.parametrize(
    ("ranked", "ks", "least"), [(10, [1, 5], None), (9, [1], 10), (50, [1, 50], None), (49, [50, 1], 50)]
)
def test_ranking_must_have_the_largest_k(ranked: int, ks: list[int], least: int | None) -> None:
    errors = list(check_ranked(OmegaConf.create({"ranked": ranked, "recall_at": ks})))
    assert [(key, error.code, error.least) for key, error in errors] == (
        [] if least is None else [("evaluation.ranked", "too-few-ranked", least)]
    )


def test_k_of_mrr_equals_that_of_the_evaluation() -> None:
    assert run_rules.TOP == per_query.TOP


def test_computed_metrics_may_be_monitored() -> None:
    ranking = Ranking(torch.arange(10)[None], torch.arange(10.0, 0, -1)[None])
    ids = [f"p{i}" for i in range(10)]
    computed = per_query.evaluate_ranking(ranking, ids, [["p1"]], KS, ["a text"] * 10, [["a text"]])
    assert len(computed) == 3 * len(KS) + 2
    for metric in computed:
        for scope in ("mean", "wit"):
            assert monitored(f"val/{scope}/{metric}", subsets=["wit"]) == [], metric


@pytest.mark.parametrize(
    "monitor",
    [
        "train/loss",
        "loss",
        "gate/passage/0",
        "val/index/recall_loss",
        "val/mean/main_recall",
        "val/seconds/encode",
        "val/mean/headline_recall",
    ],
)
def test_other_logged_metrics_may_be_monitored(monitor: str) -> None:
    assert monitored(monitor, subsets=["wit"]) == []


@pytest.mark.parametrize(
    ("monitor", "code"),
    [
        ("val/mean/recall@2", "monitor-not-computed"),
        ("val/wit/main_recall", "monitor-not-computed"),
        ("val/wit/recall", "monitor-not-computed"),
        ("test/mean/recall@1", "monitor-not-computed"),
        ("train/recall@1", "monitor-not-computed"),
        ("val_loss", "monitor-not-computed"),
        ("val/seconds/recall@1", "monitor-not-computed"),
        ("val/okvqa/recall@1", "monitored-subset-not-validated"),
    ],
)
def test_metric_that_is_never_logged_is_refused(monitor: str, code: str) -> None:
    assert monitored(monitor, subsets=["wit"]) == [("callbacks.best.monitor", code)]


def test_own_callback_may_log_any_metric() -> None:
    assert monitored("val/mean/recall@2") != []
    assert monitored("val/mean/recall@2", target="mine.Callback") == []


@pytest.mark.parametrize(
    ("scope", "answered", "computed"),
    [
        ("wit", None, True),
        ("wit", ["wit"], True),
        ("wit", ["okvqa"], False),
        ("mean", ["okvqa"], True),
        ("mean", [], False),
    ],
)
def test_pseudo_recall_needs_answers(scope: str, answered: list[str] | None, computed: bool) -> None:
    found = monitored(f"val/{scope}/pseudo_recall@5", subsets=["wit", "okvqa"], answered=answered)
    assert found == ([] if computed else [("callbacks.best.monitor", "monitor-not-computed")])


def test_curve_of_a_missing_k_is_refused() -> None:
    callbacks = {"curves": {"_target_": "ret_lightning.training.callbacks.RecallCurves", "at": 3}, "none": None}
    config = OmegaConf.create({"evaluation": {"recall_at": [1, 5]}, "callbacks": callbacks, "data": {}})
    assert codes(list(check_metrics(config))) == [("callbacks.curves.at", "recall-not-computed")]
    config.callbacks.curves.at = 5
    assert codes(list(check_metrics(config))) == []


@pytest.mark.parametrize("value", [0, 1, 7, 0.0, 0.5, 1.0, 3.0, None, True, "x"])
def test_valid_batch_limits(value: object) -> None:
    assert list(check_batch_limits({"limit_val_batches": value})) == []


@pytest.mark.parametrize("value", [-1, -0.5, 1.5, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["limit_test_batches", "overfit_batches", "val_check_interval"])
def test_invalid_batch_limits(name: str, value: float) -> None:
    assert codes(list(check_batch_limits({name: value}))) == [(f"trainer.{name}", "batch-limit-invalid")]


@pytest.mark.parametrize(
    ("trainer", "test_with", "errors"),
    [
        ({"max_epochs": 1, "limit_test_batches": 1.0}, "best", []),
        ({"max_epochs": 0}, "best", [("trainer.max_epochs", "nothing-to-train")]),
        ({"max_steps": 0}, "best", [("trainer.max_epochs", "nothing-to-train")]),
        ({"limit_train_batches": 0.0}, "best", [("trainer.limit_train_batches", "no-training-batches")]),
        ({"limit_test_batches": 0}, "last", [("trainer.limit_test_batches", "nothing-to-test")]),
        ({"limit_test_batches": 0}, "none", []),
    ],
)
def test_run_must_train_and_test(trainer: dict, test_with: str, errors: list) -> None:
    assert codes(list(check_run_length(OmegaConf.create({"trainer": trainer, "test_with": test_with})))) == errors


def test_metrics_of_an_own_loss_may_be_monitored() -> None:
    assert monitored("train/divergence") == [("callbacks.best.monitor", "monitor-not-computed")]
    assert monitored("train/divergence", own_loss=True) == []
    assert monitored("val/divergence", own_loss=True) == [("callbacks.best.monitor", "monitor-not-computed")]
    for target, own in (("ret_lightning.losses.ContrastiveLoss", False), ("mine.Loss", True)):
        assert has_own_loss(OmegaConf.create({"loss": {"_target_": target}})) == own
