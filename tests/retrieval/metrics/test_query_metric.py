"""Metrics of rankings over batches and ranks: each query counts once."""

from __future__ import annotations

import math

import pytest
import torch

from ret_lightning.errors import ConfigError
from ret_lightning.retrieval import QueryMetric
from tests.support.plain_metrics import METRICS, random_hits, updated


def test_recall_is_a_hit_rate() -> None:
    metric = QueryMetric("recall", [1, 3], 2)
    metric.update(torch.arange(2), torch.tensor([[False, True, True], [False, False, False]]))
    assert metric.compute() == {"recall@1": 0.0, "recall@3": 0.5}


def test_mrr_is_cut_at_k() -> None:
    metric = QueryMetric("mrr", [2, 4], 3)
    metric.update(torch.arange(3), torch.tensor([[0, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]]).bool())
    assert metric.compute() == {"mrr@2": 0.5 / 3, "mrr@4": 0.75 / 3}


def test_fractional_recall_of_small_example() -> None:
    metric = QueryMetric("fractional_recall", [1, 3], 3)
    # Two of three relevant passages found; the only one at rank 3; no relevant passages.
    hits = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    metric.update(torch.arange(3), hits, torch.tensor([3, 1, 0]))
    assert metric.compute() == pytest.approx({"fractional_recall@1": 1 / 9, "fractional_recall@3": (2 / 3 + 1) / 3})


def test_ndcg_of_small_example() -> None:
    metric = QueryMetric("ndcg", [1, 3], 3)
    # Two of three relevant passages found; the only one at rank 3; no relevant passages.
    hits = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    metric.update(torch.arange(3), hits, torch.tensor([3, 1, 0]))
    full = 1 + 1 / math.log2(3) + 1 / 2
    assert metric.compute() == pytest.approx({"ndcg@1": 1 / 3, "ndcg@3": (1.5 / full + 0.5) / 3})


@pytest.mark.parametrize("make", METRICS)
def test_batches_and_repeated_rows_do_not_change_result(make) -> None:
    """Rows are repeated within a batch and in a later batch."""
    hits, positions = random_hits(50), torch.arange(50)
    whole = updated(make(queries=50), positions, hits)
    parts = make(queries=50)
    again = torch.cat([positions.flip(0), positions[:9], positions[3:5]])
    for part in again.split(7):
        updated(parts, part, hits[part])
    updated(parts, torch.tensor([4, 4]), hits[[4, 4]])
    assert parts.compute() == whole.compute()
    assert list(whole.compute()) == [f"{whole.name}@{k}" for k in whole.ks]
    assert all(0 < value < 1 for value in whole.compute().values())
    parts.reset()
    assert (
        updated(parts, torch.tensor([7]), torch.ones(1, 10, dtype=torch.bool)).compute().keys()
        == whole.compute().keys()
    )
    assert int((~parts.by_query()[f"{parts.name}@{parts.ks[0]}"].isnan()).sum()) == 1


def test_first_value_of_a_query_counts() -> None:
    metric = QueryMetric("recall", [1], 2)
    metric.update(torch.tensor([1, 1]), torch.tensor([[True], [False]]))
    metric.update(torch.tensor([1]), torch.tensor([[False]]))
    assert metric.by_query()["recall@1"].nan_to_num(-1).tolist() == [-1, 1]
    assert metric.compute() == {"recall@1": 1.0}


def test_merge_state_and_forward() -> None:
    hits = random_hits(20)
    whole, one, other = (QueryMetric("recall", [5], 20) for _ in range(3))
    whole.update(torch.arange(20), hits)
    one.update(torch.arange(12), hits[:12])
    other.update(torch.arange(8, 20), hits[8:])
    one.merge_state(other)
    assert one.compute() == whole.compute()
    stepwise = QueryMetric("recall", [5], 20)
    values = [stepwise(part, hits[part])["recall@5"] for part in torch.arange(20).split(5)]
    assert values == [float(part[:, :5].any(dim=1).double().mean()) for part in hits.split(5)]
    assert stepwise.compute() == whole.compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_no_query_has_no_value() -> None:
    assert QueryMetric("pseudo_recall", [1], 3).compute() == {}


@pytest.mark.parametrize("ks", [[], [0, 5], [-1]])
def test_k_below_one_is_rejected(ks: list[int]) -> None:
    with pytest.raises(ConfigError) as caught:
        QueryMetric("pseudo_recall", ks, 1)
    assert (caught.value.code, caught.value.found) == ("metric-k-too-small", tuple(sorted(ks)))


@pytest.mark.parametrize(
    ("queries", "hits", "message"),
    [
        ([0, 1], torch.zeros(2, 4).bool(), r"recall@5: expected bool hits of shape \(N, 5 or more\).*\(2, 4\)"),
        ([0, 1], torch.zeros(2, 5), "got torch.float32"),
        (
            [0, 1, 2],
            torch.zeros(2, 5).bool(),
            r"expected int64 queries of shape \(2,\), got torch.int64 of shape \(3,\)",
        ),
        ([0.0, 1.0], torch.zeros(2, 5).bool(), "got torch.float32"),
        ([0, 3], torch.zeros(2, 5).bool(), "expected query positions from 0 to 2, got 0 to 3"),
        ([-1, 0], torch.zeros(2, 5).bool(), "got -1 to 0"),
    ],
)
def test_invalid_updates_are_rejected(queries: list, hits: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QueryMetric("recall", [1, 5], 3).update(torch.tensor(queries), hits)


@pytest.mark.parametrize("relevant", [[1, 1], [2, 0, 0], [0, 0]])
def test_more_hits_than_relevant_passages_are_rejected(relevant: list[int]) -> None:
    with pytest.raises(ValueError, match="ndcg@K: expected relevant of shape"):
        QueryMetric("ndcg", [2], 2).update(
            torch.arange(2), torch.tensor([[True, True], [False, False]]), torch.tensor(relevant)
        )
