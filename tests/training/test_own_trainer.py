"""RetModule and RetrievalEvaluation in a Trainer that the user builds."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from lightning import Trainer

from ret_lightning import RetModule, RetRetriever, RetrievalEvaluation
from ret_lightning.retrieval import ExactIndex
from tests.support.tiny_training import OPTIONS, make_data, make_module

FIT = {"logger": False, "max_steps": 1, "num_sanity_val_steps": 1, "limit_val_batches": 1, "log_every_n_steps": 1}


@pytest.fixture
def module(tmp_path: Path) -> RetModule:
    """A module with a retriever loaded by `from_pretrained`, whose text backbone is frozen."""
    module = make_module()
    module.retriever.query_tower.text_backbone.set_trained(False, 1)
    module.retriever.save_pretrained(tmp_path / "model")
    module.retriever = RetRetriever.from_pretrained(tmp_path / "model")
    return module


@pytest.mark.parametrize("validated_before", [False, True])
def test_fit_trains_in_training_mode(root: Path, module: RetModule, validated_before: bool) -> None:
    modes: list[bool] = []
    retriever = module.retriever
    retriever.query_tower.cells[0].register_forward_pre_hook(lambda cell, _: modes.append(cell.training))
    assert not retriever.training
    data = make_data(root)
    trainer = Trainer(**{**OPTIONS, **FIT}, callbacks=[RetrievalEvaluation(ExactIndex(), [1], ranked=10)])
    if validated_before:
        trainer.validate(module, datamodule=data, verbose=False)
        assert not any(modes)
    trainer.fit(module, datamodule=data)
    assert modes.count(True) == retriever.query_tower.plan.steps  # one batch; validations encode in eval mode
    assert retriever.query_tower.vision_backbone.training
    assert not retriever.query_tower.text_backbone.training  # frozen


def test_test_without_evaluation_warns(root: Path, module: RetModule, caplog: pytest.LogCaptureFixture) -> None:
    trainer = Trainer(**OPTIONS, logger=False)
    with caplog.at_level(logging.WARNING, logger="ret_lightning"):
        assert not any(trainer.test(module, datamodule=make_data(root)))
    assert [record for record in caplog.records if "RetrievalEvaluation is missing" in record.message]


def test_fit_without_evaluation_warns_once(root: Path, module: RetModule, caplog: pytest.LogCaptureFixture) -> None:
    trainer = Trainer(**{**OPTIONS, **FIT, "max_steps": 2, "val_check_interval": 1})
    with caplog.at_level(logging.WARNING, logger="ret_lightning"):
        trainer.fit(module, datamodule=make_data(root))
    assert len([record for record in caplog.records if "the validation computes no metrics" in record.message]) == 1


@pytest.mark.parametrize(("command", "split"), [("test", "test"), ("validate", "val")])
def test_each_metric_is_printed_once(
    root: Path, module: RetModule, command: str, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(**OPTIONS, logger=False, callbacks=[RetrievalEvaluation(ExactIndex(), [1, 3], ranked=10)])
    run, data = getattr(trainer, command), make_data(root)
    for _ in range(2):  # a second call prints again
        (metrics, *_others) = run(module, datamodule=data)
        printed = capsys.readouterr().out
        assert {name: printed.split().count(name) for name in metrics} == dict.fromkeys(metrics, 1)
        assert f"{metrics[f'{split}/mean/recall@3']:.6g}" in printed
    run(module, datamodule=data, verbose=False)
    assert capsys.readouterr().out == ""
