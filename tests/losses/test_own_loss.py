"""A user-defined loss, added by one file and one config, with teacher scores read from the rows."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from ret_lightning.losses import EncodedBatch
from ret_lightning.models.gradient_cache import encode_in_micro_batches
from tests.support.m2kr_folder import TRAIN, read, write_folder, write_lines
from tests.support.small_runs import small_run
from tests.support.tiny_models import NO_DROPOUT, PASSAGES, QUERIES, make

LOSS = '''
import torch

from ret_lightning.losses import LossOutput, RetrievalLoss, maxsim, mean_over_rows


class DistillationLoss(RetrievalLoss):
    """KL divergence of the teacher's and the student's distributions over the passages of each row."""

    def __init__(self, temperature=1.0):
        super().__init__()
        self.temperature = temperature

    def forward(self, batch):
        own = batch.passage_rows == torch.arange(len(batch), device=batch.query.device)[:, None]
        student = maxsim(batch.query, batch.passage).masked_fill(~own, -torch.inf).log_softmax(1)
        teacher = (batch.extra["teacher"] / self.temperature).masked_fill(~own, -torch.inf).log_softmax(1)
        each = torch.where(own, teacher.exp() * (teacher - student), 0).sum(1)
        loss, pairs = mean_over_rows(each * batch.extra["weight"])
        return LossOutput(loss, {"divergence": loss.detach()}, pairs)
'''
CONFIG = """
_target_: tests_losses_distillation.DistillationLoss
temperature: 0.5
"""


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a package with the loss, allow its targets, and return the folder with its config."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "tests_losses_distillation.py").write_text(LOSS)
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "distillation.yaml").write_text(CONFIG)
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.setenv(OWN_PACKAGES, "tests_losses_distillation")
    return tmp_path / "conf"


def rows_with_scores(root: Path) -> Path:
    """Add a weight and 0, 1 or 2 negatives with teacher scores to each training row of a corpus; return its folder."""
    rows = read(root / TRAIN)
    for number, row in enumerate(rows):
        negatives = [
            {"passage_id": f"n{number}_{i}", "passage_text": f"wrong {i}", "teacher": -float(i + number % 5)}
            for i in range(number % 3)
        ]
        row.update(teacher=1.0, weight=0.5 + number % 2, negative_passages=negatives)
    write_lines(root / TRAIN, rows)
    return root


@pytest.mark.slow
def test_training_with_user_defined_loss(call: Callable[..., int], own_package: Path, tmp_path: Path) -> None:
    root, run = rows_with_scores(write_folder(tmp_path / "m2kr")), tmp_path / "run"
    options = ["loss=distillation", "data.passage_columns=[teacher]", "data.columns=[weight]", "trainer.max_epochs=2"]
    assert call("train", "--config-dir", own_package, *small_run(root, run, *options, "micro_batch=3")) == 0
    assert json.loads((run / "metrics.json").read_text())
    with (run / "csv" / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row.get("train/divergence")]
    assert all(float(row["train/divergence"]) == float(row["train/loss"]) for row in logged)
    losses = [float(row["train/loss"]) for row in logged]
    assert len(losses) == 10
    assert sum(losses[5:]) < sum(losses[:5])
    assert "train/query_recall@1" not in logged[0]  # of another loss


def test_own_loss_has_the_same_gradients_in_micro_batches(own_package: Path) -> None:
    from tests_losses_distillation import DistillationLoss

    rows = torch.arange(len(QUERIES))
    extra = {"teacher": torch.zeros(len(PASSAGES)), "weight": torch.linspace(0.5, 2, len(QUERIES))}
    retriever = make("lstm", {}, (True, 2), **NO_DROPOUT).double().train()
    found = []
    for micro_batch in (None, 2):
        retriever.zero_grad(set_to_none=True)
        vectors = encode_in_micro_batches(retriever, QUERIES, PASSAGES, micro_batch)
        # Two rows share the passages of each, so that a row has several.
        DistillationLoss()(EncodedBatch(*vectors, rows, rows, rows // 2, extra)).loss.backward()
        found.append([p.grad for p in retriever.parameters() if p.requires_grad])
    assert any(gradient.abs().max() > 1e-4 for gradient in found[0])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-9)


def test_divergence_is_the_formula(own_package: Path) -> None:
    from tests_losses_distillation import DistillationLoss

    query, passage = torch.randn(2, 1, 4), torch.randn(3, 1, 4)
    teacher = torch.tensor([1.0, 2.0, 0.5])
    extra = {"teacher": teacher, "weight": torch.tensor([2.0, 1.0])}
    batch = EncodedBatch(query, passage, torch.arange(2), torch.arange(3), torch.tensor([0, 1, 0]), extra)
    scores = [float(query[0, 0] @ passage[i, 0]) for i in (0, 2)]
    p = [math.exp(t) / (math.exp(1.0) + math.exp(0.5)) for t in (1.0, 0.5)]
    q = [math.exp(s) / sum(math.exp(t) for t in scores) for s in scores]
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) * 2 / 2  # the second row has one passage: 0
    assert float(DistillationLoss()(batch).loss) == pytest.approx(expected, rel=1e-5)
