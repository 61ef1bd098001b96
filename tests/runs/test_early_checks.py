"""Checks of devices, monitored metrics and batch limits before a run starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from ret_lightning.config.run_rules import find_unlogged_monitors
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.models import LSTMGate
from ret_lightning.runs import early_checks
from ret_lightning.runs.early_checks import check_devices, prepare_and_check, warn_if_not_storable
from tests.support.tiny_training import make_data, make_module


@pytest.mark.parametrize(
    ("accelerator", "devices", "gpus", "code"),
    [
        ("gpu", 1, 0, "gpu-not-found"),
        ("cuda", "auto", 0, "gpu-not-found"),
        ("gpu", 4, 2, "too-few-gpus"),
        ("gpu", "4", 2, "too-few-gpus"),
        ("gpu", [0, 2], 2, "too-few-gpus"),
        ("gpu", "0,2", 2, "too-few-gpus"),
        ("gpu", [1], 2, None),
        ("gpu", "auto", 2, None),
        ("gpu", -1, 2, None),
        ("cpu", 4, 0, None),
        ("auto", 4, 0, None),
    ],
)
def test_missing_gpus_are_refused(monkeypatch, accelerator: str, devices: object, gpus: int, code: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    trainer = OmegaConf.create({"accelerator": accelerator, "devices": devices})
    if code is None:
        check_devices(trainer)
        return
    with pytest.raises(ConfigError) as error:
        check_devices(trainer)
    assert error.value.code == code
    assert "trainer=cpu" in error.value.message or error.value.most == gpus


def check(root: Path, test_with: str = "best", monitor: str = "val/mean/recall@5", ranks: int = 1, **options) -> None:
    limits = {f"limit_{name}_batches": 1.0 for name in ("train", "val", "test")} | {"overfit_batches": 0.0}
    trainer = SimpleNamespace(world_size=ranks, **limits | options)
    config = OmegaConf.create(
        {
            "test_with": test_with,
            "evaluation": {"recall_at": [1, 5]},
            "callbacks": {"checkpoint": {"_target_": "ret_lightning.x", "monitor": monitor}},
        }
    )
    prepare_and_check(make_data(root, eval_batch_size=4), trainer, config)  # 3 batches of 24 rows, 3 of 12


@pytest.mark.parametrize(
    ("limits", "batches"),
    [
        ({"limit_train_batches": 0.3}, 3),
        ({"limit_val_batches": 0.3}, 3),
        ({"limit_test_batches": 0.01}, 3),
        ({"limit_test_batches": 0.9, "ranks": 2}, 1),
        ({"limit_train_batches": 0.9, "ranks": 2}, 2),
    ],
)
def test_limits_that_select_no_batch_are_refused(root: Path, limits: dict, batches: int) -> None:
    if limits == {"limit_train_batches": 0.9, "ranks": 2}:
        check(root, **limits)  # 1 of 2 batches
        limits = {"limit_train_batches": 0.4, "ranks": 2}
    with pytest.raises(ConfigError) as error:
        check(root, **limits)
    key, value = next(iter(limits.items()))
    assert (error.value.code, error.value.key, error.value.found) == ("limit-leaves-no-batch", f"trainer.{key}", value)
    assert error.value.batches == batches
    assert int(batches * error.value.least) >= 1
    check(root, **{**limits, key: error.value.least})
    check(root, **{**limits, key: 1})


def test_test_limit_is_ignored_without_a_test(root: Path) -> None:
    check(root, limit_test_batches=0.01, test_with="none")


@pytest.mark.parametrize(
    ("monitor", "code"),
    [
        ("val/kvqa/recall@5", "monitored-subset-not-validated"),
        ("val/wit/pseudo_recall@5", "monitor-not-computed"),
        ("val/okvqa/pseudo_recall@5", None),
    ],
)
def test_monitor_is_checked_against_the_data(root: Path, monitor: str, code: str | None) -> None:
    if code is None:
        check(root, monitor=monitor)
        return
    with pytest.raises(ConfigError) as error:
        check(root, monitor=monitor)
    assert (error.value.code, error.value.key) == (code, "callbacks.checkpoint.monitor")


def test_monitor_suggests_whole_names() -> None:
    callbacks = {"checkpoint": {"_target_": "ret_lightning.x", "monitor": "val/okvqa/recall@7"}}
    ((_, error),) = find_unlogged_monitors(callbacks, (1, 5), ["okvqa"])
    assert error.code == "monitor-not-computed"
    assert "val/okvqa/recall@5?" in error.message


def test_test_file_is_read_before_training(root: Path, monkeypatch) -> None:
    file = root / "jsonl/m2kr/test/evqa_test_m2kr.jsonl"
    file.write_text(file.read_text() + "{\n")
    monkeypatch.setattr(
        early_checks.RetrievalDataModule, "prepare_data", lambda data: pytest.fail("reads the training file")
    )
    with pytest.raises(DataError) as error:
        check(root)
    assert (error.value.code, error.value.line) == ("not-json", 13)


class NamelessGate(LSTMGate):
    pass


@pytest.mark.parametrize(("gate", "code"), [(LSTMGate, None), (NamelessGate, "gate-without-name")])
def test_model_that_cannot_be_exported_is_reported(
    gate: type[LSTMGate], code: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    retriever = make_module().retriever
    retriever.passage_tower.cells[0].gate = gate(32)
    warn_if_not_storable(retriever)
    assert [f"[{code}]" in message for message in caplog.messages] == ([] if code is None else [True])
