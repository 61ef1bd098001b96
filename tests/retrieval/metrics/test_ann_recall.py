from __future__ import annotations

import pytest
import torch

from ret_lightning.retrieval import ExactIndex, FaissIndex, compare_rankings, measure_ann_recall, sample_queries
from tests.support.random_pools import brute_force, clustered

IDS = ["a", "b", "c", "d", "e"]


def test_recall_and_loss_of_small_example():
    exact = torch.tensor([[0, 1, 2], [3, 4, 0], [2, 1, 0]])
    found = torch.tensor([[0, 2, 3], [4, 1, 2], [2, 1, 0]])
    result = compare_rankings(found, exact, IDS, [["b"], ["e", "d"], ["c"]], k=2, recall_at=(1, 3))
    assert result == {
        "ann_recall@2": pytest.approx((1 / 2 + 1 / 2 + 1) / 3),  # {0, 1} and {0, 2}; {3, 4} and {4, 1}
        "recall_loss@1": pytest.approx(2 / 3 - 2 / 3),  # exact finds d and c, the index e and c
        "recall_loss@3": pytest.approx(3 / 3 - 2 / 3),  # the index lost b
    }


def test_recall_loss_can_be_negative():
    exact, found = torch.tensor([[0, 1]]), torch.tensor([[1, 2]])
    assert compare_rankings(found, exact, IDS, [["c"]], k=2, recall_at=(2,)) == {
        "ann_recall@2": 0.5,
        "recall_loss@2": -1.0,
    }


def test_missing_passages_are_not_counted():
    exact, found = torch.tensor([[2, 0, -1, -1]]), torch.tensor([[0, -1, -1, -1]])
    result = compare_rankings(found, exact, IDS, [["a"]], k=4, recall_at=(1, 4))
    assert result == {"ann_recall@4": 0.5, "recall_loss@1": -1.0, "recall_loss@4": 0.0}


def test_measurement_uses_the_sample():
    queries, passages = clustered(400, 50)
    index = FaissIndex("IVF32,SQ8", candidates=10, hits=10, nprobe=1)
    index.build(passages)
    positives = [[passages.ids[query]] for query in range(50)]
    measured = measure_ann_recall(index, passages, queries, positives, sample=20, seed=3, k=5, recall_at=(1, 7))
    sampled = sample_queries(50, 20, 3).tolist()
    best, found = brute_force(queries[sampled], passages, 7)[0], index.search(queries[sampled], 7).rows.numpy()
    shared = [len(set(b[:5]) & set(f[:5])) / 5 for b, f in zip(best, found, strict=True)]
    assert measured["ann_recall@5"] == pytest.approx(sum(shared) / 20)
    assert 0 < measured["ann_recall@5"] < 1
    for at in (1, 7):
        exact, own = (
            sum(query in ranked[:at] for query, ranked in zip(sampled, ranking, strict=True)) / 20
            for ranking in (best, found)
        )
        assert measured[f"recall_loss@{at}"] == pytest.approx(exact - own)


def test_exact_search_has_full_recall():
    queries, passages = clustered(300, 10)
    index = ExactIndex()
    index.build(passages)
    measured = measure_ann_recall(index, passages, queries, [["p1"]] * 10)
    assert measured == {"ann_recall@10": 1, "recall_loss@1": 0, "recall_loss@5": 0, "recall_loss@10": 0}


def test_sample_depends_only_on_seed():
    assert sample_queries(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    one, same, other = sample_queries(1000, 20, 1), sample_queries(1000, 20, 1), sample_queries(1000, 20, 2)
    assert one.tolist() == same.tolist() == sorted(set(one.tolist()))
    assert one.tolist() != other.tolist()


def test_different_numbers_of_queries_are_rejected():
    one, two = torch.zeros(1, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
    for found, exact in ((one, two), (two[:0], two[:0])):
        with pytest.raises(ValueError, match="expected the same number of queries"):
            compare_rankings(found, exact, IDS, [["a"]])
