"""The warning about queries without a negative in their global batch."""

from __future__ import annotations

import logging

import pytest
import torch

from ret_lightning.losses import PADDING, ContrastiveLoss, EncodedBatch

CASES = [  # labels of queries, labels of passages (None: first labels of the queries), queries without a negative
    ([[1]], None, 1),
    ([[1], [1], [1]], None, 3),
    ([[1, 2], [2, PADDING]], None, 1),
    ([[1], [2]], None, 0),
    ([[1]], [1, 5], 0),
    ([[1, 5]], [1, 5], 1),
]


@pytest.mark.parametrize(("labels", "passage_labels", "without"), CASES)
def test_queries_without_negatives_are_reported_once(
    labels: list[list[int]],
    passage_labels: list[int] | None,
    without: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    query, passage = torch.randn(len(labels), 4, 8), torch.randn(len(passage_labels or labels), 4, 8)
    of_passages = None if passage_labels is None else torch.tensor(passage_labels)
    loss = ContrastiveLoss()
    with caplog.at_level(logging.WARNING):
        outputs = [loss(EncodedBatch(query, passage, torch.tensor(labels), of_passages)) for _ in range(3)]
    assert len(caplog.records) == (1 if without else 0)
    if without:
        message = caplog.messages[0]
        assert message.startswith(f"{without} of {len(labels)} queries")
        assert "micro_batch" in message
        assert "gradient caching" in message
    if len(labels) == len(passage) == 1:
        assert outputs[0].loss == 0


def test_passages_of_other_ranks_are_negatives(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A global batch of one pair per rank has negatives if the passages differ."""
    loss = ContrastiveLoss()
    positive = torch.tensor([[True, False]])  # of two ranks
    loss._warn_without_negatives(positive)
    assert not caplog.records
    loss._warn_without_negatives(torch.tensor([[True, True]]))
    assert len(caplog.records) == 1
