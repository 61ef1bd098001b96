"""Truncated texts are reported once in training and once per evaluation split."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from lightning import Trainer

from ret_lightning import M2KRDataModule, RetrievalEvaluation
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from ret_lightning.retrieval import ExactIndex
from ret_lightning.training.callbacks import text_lengths
from tests.support.m2kr_folder import PASSAGES, SUBSETS
from tests.support.tiny_training import OPTIONS, make_module


@pytest.mark.parametrize("first", [2, 100])
def test_truncated_texts_are_reported_once_per_split(
    first: int, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(text_lengths, "FIRST_BATCHES", first)
    data = M2KRDataModule(root, ClipTokenizer(3), ImageTransform(16), batch_size=8, validation="test")
    evaluation = RetrievalEvaluation(ExactIndex(), recall_at=[1], ranked=10)
    trainer = Trainer(
        **{**OPTIONS, "limit_val_batches": 1.0, "max_epochs": 2, "logger": False, "callbacks": [evaluation]}
    )
    module = make_module()
    with caplog.at_level(logging.WARNING, "ret_lightning"):
        trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data)
    lines = [message for message in caplog.messages if "more than 3 tokens and are truncated" in message]
    assert [line.split(":")[0] for line in lines].count("val texts") == 1
    assert [line.split(":")[0] for line in lines].count("test texts") == 1
    batches = min(first, 3)  # 24 rows
    (training,) = [line for line in lines if line.startswith("training texts")]
    assert training.startswith(f"training texts of the first {batches} batches: ")
    counted = int(training.split(" of ")[2].split()[0])
    assert 0 < counted <= 2 * 8 * batches
    assert len(lines) == 3
    of_split = {subset.name: subset for subset in data.evaluation_subsets("test")}
    texts = sum(row.text is not None for s in of_split.values() for row in (*s.pool, *s.queries))
    assert f" of {texts} have" in next(line for line in lines if line.startswith("test texts"))
    assert texts <= 2 * PASSAGES * len(SUBSETS)
