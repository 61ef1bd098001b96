from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ret_lightning.retrieval import Ranking
from ret_lightning.retrieval.ranking import break_ties, top_columns

NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf")]), st.floats(width=32, allow_nan=False)
)


@settings(max_examples=200)
@given(st.lists(NUMBERS, min_size=1, max_size=40), st.data())
def test_top_columns_orders_by_score_then_column(scores, data):
    k = data.draw(st.integers(0, len(scores)))
    expected = sorted(range(len(scores)), key=lambda column: (-scores[column], column))[:k]
    assert top_columns(torch.tensor([scores]), k).tolist() == [expected]


@settings(max_examples=200)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=40), st.integers(1, 4))
def test_break_ties_lowers_scores_minimally(scores, copies):
    scores = sorted(scores * copies, reverse=True)
    expected = []
    for score in scores:
        below = np.nextafter(np.float32(expected[-1]), np.float32(-np.inf)) if expected else np.inf
        expected.append(float(min(np.float32(score), below)))
    distinct = break_ties(torch.tensor([scores], dtype=torch.float32))
    assert distinct.dtype == torch.float32
    assert distinct.tolist() == [expected]
    assert all(a > b for a, b in pairwise(expected))


def test_top_columns_sorts_each_row():
    scores = torch.tensor([[1.0, 2.0, 2.0], [3.0, 1.0, 3.0]])
    assert top_columns(scores, 2).tolist() == [[1, 2], [0, 2]]


@pytest.mark.parametrize(
    ("rows", "scores", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4), r"got \(2, 3\) and \(2, 4\)"),
        (torch.zeros(3, dtype=torch.int64), torch.zeros(3), r"\(Nq, K\)"),
        (torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 3), "expected int64 rows"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.float64), "float32 scores"),
    ],
)
def test_ranking_rejects_invalid_shapes_and_dtypes(rows, scores, message):
    with pytest.raises(ValueError, match=message):
        Ranking(rows, scores)


def test_ranking_length_is_number_of_queries():
    assert len(Ranking(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3))) == 2
