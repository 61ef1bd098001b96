"""The batch that a loss receives, and the mean over ranks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ret_lightning.errors import UserError
from ret_lightning.losses import EncodedBatch, mean_over_rows
from tests.support.ranks import on_ranks


def features(queries: int, passages: int | None = None) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(queries)
    return tuple(torch.randn(n, 3, 6, generator=random) for n in (queries, passages or queries))


def test_encoded_batch_completes_short_forms() -> None:
    query, passage = (vectors[:, 0] for vectors in features(4))
    batch = EncodedBatch(query, passage, torch.tensor([7, 8, 7, 9]))
    assert batch.query.shape == batch.passage.shape == (4, 1, 6)
    assert batch.labels.tolist() == [[7], [8], [7], [9]]
    assert batch.passage_labels.tolist() == [7, 8, 7, 9]
    assert batch.passage_rows.tolist() == [0, 1, 2, 3]
    assert len(batch) == 4


@pytest.mark.parametrize(
    ("passages", "labels", "passage_labels", "passage_rows", "message"),
    [
        (4, torch.arange(3), None, None, r"4 queries, 4 passages, 3 rows of labels, passage_labels of shape \(3,\)"),
        (4, torch.arange(4), torch.arange(3), None, r"passage_labels of shape \(3,\)"),
        (3, torch.arange(4), None, None, r"4 queries, 3 passages"),
        (6, torch.arange(4), None, None, r"4 queries, 6 passages"),
        (6, torch.arange(4), torch.arange(6), torch.arange(4), r"passage_rows of shape \(4,\)"),
        (4, torch.zeros(4, 0), torch.arange(4), None, r"with m >= 1, got \(4, 0\)"),
        (4, torch.zeros(4, 1, 1), torch.arange(4), None, r"got \(4, 1, 1\)"),
    ],
)
def test_inconsistent_shapes_are_refused(passages, labels, passage_labels, passage_rows, message) -> None:
    with pytest.raises(ValueError, match=message):
        EncodedBatch(*features(4, passages), labels, passage_labels, passage_rows)


@pytest.mark.parametrize(("side", "rows"), [("queries", [1, 4]), ("passages", [3])])
def test_nonfinite_features_are_reported_by_row(side: str, rows: list[int]) -> None:
    vectors = dict(zip(("queries", "passages"), features(6), strict=True))
    vectors[side][rows, 0, 2] = math.nan
    vectors[side][rows[0], 0, 2] = math.inf
    with pytest.raises(UserError) as error:
        EncodedBatch(*vectors.values(), torch.arange(6)).check_finite()
    assert (error.value.code, error.value.side, error.value.rows) == ("features-not-finite", side, rows)


def _means(rank: int) -> tuple[float, int, list[float]]:
    values = torch.tensor([[1.0, 2.0, 6.0], []][rank], requires_grad=True)
    mean, rows = mean_over_rows(values)
    mean.backward()
    return float(mean.detach()), rows, values.grad.tolist()


def test_mean_over_rows_covers_all_ranks(tmp_path: Path) -> None:
    assert mean_over_rows(torch.tensor([1.0, 5.0])) == (3, 2)
    assert mean_over_rows(torch.zeros(0)) == (0, 0)
    (one, rows, gradient), (other, _, empty) = on_ranks(_means, 2, tmp_path)
    assert ((one + other) / 2, rows) == (3, 3)
    assert [g / 2 for g in gradient] == pytest.approx([1 / 3] * 3)  # DDP takes the mean over ranks
    assert empty == []
