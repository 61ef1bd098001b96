"""EncodingModule gives the same metrics as RetModule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import Trainer

from ret_lightning import RetrievalEvaluation
from ret_lightning.evaluation import EncodingModule
from ret_lightning.retrieval import ExactIndex
from tests.support.tiny_training import OPTIONS, make_data, make_module


@pytest.mark.parametrize("split", ["val", "test"])
def test_metrics_equal_those_of_training_module(root: Path, split: str) -> None:
    found = []
    for module in (make_module(), EncodingModule(make_module().retriever)):
        evaluation = RetrievalEvaluation(ExactIndex(), recall_at=[1, 3], ranked=10)
        trainer = Trainer(**OPTIONS, logger=False, callbacks=[evaluation])
        (trainer.test if split == "test" else trainer.validate)(module, datamodule=make_data(root), verbose=False)
        found.append(evaluation.results[split])
    assert found[0].metrics == found[1].metrics
    for name, result in found[0].subsets.items():
        assert torch.equal(result.ranking.scores, found[1].subsets[name].ranking.scores)
