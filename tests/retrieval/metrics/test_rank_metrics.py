"""The functions behind the metrics; test_per_query.py tests metrics of whole rankings."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
import torch

from ret_lightning.errors import ConfigError
from ret_lightning.retrieval import QueryMetric, count_positives, positive_hits, random_recall, rank_metrics
from ret_lightning.retrieval.metrics.rank_metrics import METRICS


@pytest.mark.parametrize("name", METRICS)
def test_metric_names_and_shapes(name: str) -> None:
    hits = torch.tensor([[True, False, True], [False, False, False]])
    found = rank_metrics(name, [3, 1, 3], hits, torch.tensor([2, 0]))
    assert list(found) == [f"{name}@1", f"{name}@3"]
    assert all(values.dtype == torch.float64 for values in found.values())
    assert found[f"{name}@3"][0] > 0
    assert found[f"{name}@3"][1] == 0
    assert all(len(values) == 0 for values in rank_metrics(name, [1], hits[:0], torch.zeros(0).long()).values())


@pytest.mark.parametrize("ks", [[], [0, 5]])
def test_k_below_one_is_rejected(ks: list[int]) -> None:
    with pytest.raises(ConfigError) as caught:
        rank_metrics("mrr", ks, torch.zeros(1, 9).bool())
    assert (caught.value.code, caught.value.found) == ("metric-k-too-small", tuple(ks))


@pytest.mark.parametrize("n", [1, 5, 8])
def test_random_recall_equals_enumeration(n):
    for positives in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations(range(n), k))
            share = sum(min(subset) < positives for subset in subsets) / len(subsets)
            assert random_recall(n, [positives], k) == pytest.approx(share, rel=1e-15)


def test_random_recall_averages_queries():
    assert random_recall(10, [1, 0, 3], 2) == pytest.approx((0.2 + 0 + 1 - comb(7, 2) / comb(10, 2)) / 3)
    assert random_recall(110_000, [1], 100) == pytest.approx(100 / 110_000, rel=1e-15)
    assert random_recall(5, [1, 0], 100) == 0.5


def test_random_recall_matches_random_rankings():
    generator = torch.Generator().manual_seed(0)
    ids = [str(row) for row in range(50)]
    positives = [["3"], ["1", "4"], ["gone"], ["7", "8", "9"]] * 1000
    rows = torch.rand(len(positives), 50, generator=generator).argsort(dim=1)
    metric = QueryMetric("recall", [5], len(positives))
    metric.update(torch.arange(len(positives)), positive_hits(rows, ids, positives))
    expected = random_recall(50, count_positives(ids, positives), 5)
    assert metric.compute()["recall@5"] == pytest.approx(expected, abs=0.02)  # four standard deviations


@pytest.mark.parametrize(("counts", "k"), [([], 1), ([1], 0), ([6], 1), ([-1], 1)])
def test_random_recall_rejects_invalid_counts(counts, k):
    with pytest.raises(ValueError, match="random_recall"):
        random_recall(5, counts, k)
