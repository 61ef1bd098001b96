"""Queries for which an approximate index finds too few candidates: marked, ranked exactly, or left short."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ret_lightning.retrieval import ExactIndex, FaissIndex, Index, MuveraIndex, measure_ann_recall
from tests.support.random_pools import clustered

# One hit per query vector: fewer than ten passages.
FEW_HITS = {"hits": 1, "candidates": 12}


def built(index: Index, passages: object) -> Index:
    index.build(passages)
    return index


def test_fallback_marks_and_ranks_short_queries() -> None:
    queries, passages = clustered(300, 30, k=2)
    ranking = built(FaissIndex(**FEW_HITS), passages).search(queries, 10)
    assert ranking.short.all()
    exact = built(ExactIndex(), passages).search(queries, 10)
    assert exact.short is None
    torch.testing.assert_close(ranking.rows, exact.rows, rtol=0, atol=0)


def test_rankings_without_fallback_end_with_candidates() -> None:
    queries, passages = clustered(300, 30, k=2)
    ranking = built(FaissIndex(**FEW_HITS, exact_fallback=False), passages).search(queries, 10)
    assert ranking.short.all()
    found = (ranking.rows >= 0).sum(dim=1)
    assert ((found > 0) & (found <= 2)).all()  # a query has two vectors, and each hits one passage
    assert ((ranking.rows >= 0) == ranking.scores.isfinite()).all()
    best = built(ExactIndex(), passages).search(queries, 300)
    for rows, scores, every, of_every in zip(ranking.rows, ranking.scores, best.rows, best.scores, strict=True):
        known = dict(zip(every.tolist(), of_every.tolist(), strict=True))
        own = [(row, score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True) if row >= 0]
        assert rows[len(own) :].eq(-1).all()
        assert [score for _, score in own] == pytest.approx([known[row] for row, _ in own])
        assert own == sorted(own, key=lambda pair: -pair[1])


def test_queries_with_enough_candidates_are_not_short() -> None:
    queries, passages = clustered(300, 30)
    for fallback in (True, False):
        ranking = built(FaissIndex(candidates=100, exact_fallback=fallback), passages).search(queries, 10)
        assert not ranking.short.any()
        assert (ranking.rows >= 0).all()


def test_pool_smaller_than_candidates_is_not_short() -> None:
    queries, passages = clustered(20, 30)
    ranking = built(FaissIndex(hits=1, exact_fallback=False), passages).search(queries, 50)
    assert not ranking.short.any()


def test_short_flags_of_several_query_blocks() -> None:
    queries, passages = clustered(300, 30, k=2)
    index = built(FaissIndex(**FEW_HITS), passages)
    assert index.search(queries[:0], 10).short.tolist() == []
    many = queries.repeat(20, 1, 1)
    assert len(index.search(many, 10).short) == len(many)
    assert index.search(queries[:3], 10).short.tolist() == [True] * 3


def test_exact_fallback_setting_is_saved(tmp_path: Path) -> None:
    queries, passages = clustered(300, 30, k=2)
    built(FaissIndex(**FEW_HITS, exact_fallback=False), passages).save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index", passages)
    assert loaded.exact_fallback is False
    assert (loaded.search(queries, 10).rows < 0).any()


@pytest.mark.parametrize("kind", [FaissIndex, MuveraIndex])
def test_fallback_is_on_by_default(kind: type[Index]) -> None:
    assert kind().exact_fallback is True
    assert kind(exact_fallback=False).exact_fallback is False


def test_recall_loss_without_fallback() -> None:
    queries, passages = clustered(400, 50, k=2)
    index = built(FaissIndex("IVF32,Flat", nprobe=1, hits=1, candidates=12), passages)
    exact = built(ExactIndex(), passages).search(queries, 10)
    positives = [[passages.ids[row]] for row in exact.rows[:, 4].tolist()]
    measured = measure_ann_recall(index, passages, queries, positives, recall_at=(5,))
    assert measured["ann_recall@10"] == 1  # the exact fallback ranked every query
    assert measured["recall_loss@5"] == 0
    assert measured["fallback_share"] == 1
    assert measured["ann_recall_without_fallback@10"] <= 0.2
    assert measured["recall_loss_without_fallback@5"] > 0.5
    assert index.exact_fallback is True
    index.exact_fallback = False
    without = measure_ann_recall(index, passages, queries, positives, recall_at=(5,))
    assert (
        without["recall_loss@5"]
        == without["recall_loss_without_fallback@5"]
        == pytest.approx(measured["recall_loss_without_fallback@5"])
    )
