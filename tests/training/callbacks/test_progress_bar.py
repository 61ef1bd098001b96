"""Progress of a run: a bar on a terminal, lines in a log file."""

from __future__ import annotations

import io
import logging
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer

from ret_lightning import RetrievalEvaluation
from ret_lightning.retrieval import ExactIndex
from ret_lightning.training.callbacks.progress_bar import Progress
from tests.support.m2kr_folder import SUBSETS
from tests.support.tiny_training import OPTIONS, make_data, make_module


def test_log_file_reports_encoding_progress(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # a file, though the tests may run on a terminal
    evaluation = RetrievalEvaluation(ExactIndex(), recall_at=[1], ranked=10)
    options = {**OPTIONS, "enable_progress_bar": True}
    trainer = Trainer(**options, logger=False, callbacks=[evaluation, Progress(seconds=0)])
    with caplog.at_level(logging.INFO):
        trainer.test(make_module(), datamodule=make_data(root, eval_batch_size=5), verbose=False)
    lines = [line for line in caplog.messages if line.startswith("encoding ")]
    assert len(lines) == 2 * 3 * len(SUBSETS)  # twelve rows in batches of five
    assert lines[0] == "encoding passages of wit: batch 1 of 3 on this rank"
    assert lines[-1] == "encoding queries of okvqa: batch 3 of 3 on this rank"


@pytest.fixture
def trainer() -> SimpleNamespace:
    return SimpleNamespace(
        is_global_zero=True,
        current_epoch=1,
        global_step=7,
        num_training_batches=5,
        callback_metrics={"train/loss": torch.tensor(0.25)},
    )


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> Progress:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr("lightning.pytorch.callbacks.TQDMProgressBar.on_train_batch_end", lambda *_: None)
    return Progress(seconds=30)


def test_lines_are_at_least_the_interval_apart(progress, trainer, caplog, monkeypatch) -> None:
    start = time.monotonic()
    with caplog.at_level(logging.INFO):
        for seconds, batch in ((1, 0), (29, 1), (31, 2), (60, 3), (62, 4)):
            monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: start + seconds)
            progress.on_train_batch_end(trainer, None, None, None, batch)
    assert caplog.messages == [
        "epoch 2, batch 3 of 5, step 7, loss 0.250",
        "epoch 2, batch 5 of 5, step 7, loss 0.250",
    ]


@pytest.mark.parametrize("reason", ["another rank", "a terminal"])
def test_no_line_with_a_bar_or_on_other_ranks(progress, trainer, caplog, reason: str) -> None:
    progress.seconds = 0
    if reason == "a terminal":
        progress.enable()
    trainer.is_global_zero = reason != "another rank"
    with caplog.at_level(logging.INFO):
        progress.on_train_batch_end(trainer, None, None, None, 0)
    assert caplog.messages == []
