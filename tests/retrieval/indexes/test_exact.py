"""Exact search compared with all MaxSim scores in float64."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ret_lightning.ops.maxsim import maxsim
from ret_lightning.retrieval import Embeddings, Ranking
from ret_lightning.retrieval.indexes import exact as exact_module
from ret_lightning.retrieval.indexes.exact import rerank_candidates
from tests.support.exact_search import assert_ranking, search
from tests.support.random_pools import brute_force, clustered, embeddings, maxsim_float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("n", "top_k"), [(300, 10), (40, 20), (7, 7), (300, 290)])
def test_exact_search_equals_brute_force(n, top_k, dtype):
    queries, passages = clustered(n, 20)
    passages = Embeddings(passages.ids, passages.vectors.to(dtype))
    assert_ranking(search(passages, queries, top_k), *brute_force(queries, passages, top_k))


@pytest.mark.parametrize("block", [1, 64, 99])
def test_passage_blocks_do_not_change_ranking(block):
    queries, passages = clustered(100, 20)  # more than twice 10 + MARGIN: a shortlist, then exact scores
    assert_ranking(search(passages, queries, 10, block=block), *brute_force(queries, passages, 10))


def test_gather_blocks_do_not_change_ranking(monkeypatch):
    queries, passages = clustered(300, 20)
    monkeypatch.setattr(
        exact_module, "CPU_GATHER_ELEMENTS", 5 * 8 * 32
    )  # five passages, which do not divide 42 candidates
    assert_ranking(search(passages, queries, 10), *brute_force(queries, passages, 10))


# Vectors of small whole numbers tie often, and every sum is exact in any arithmetic.
@settings(max_examples=60)
@given(
    arrays(
        np.float32, st.tuples(st.integers(1, 60), st.integers(1, 3), st.just(2)), elements=st.sampled_from([-1, 0, 1])
    ),
    arrays(
        np.float32, st.tuples(st.integers(0, 4), st.integers(1, 3), st.just(2)), elements=st.sampled_from([-1, 0, 1])
    ),
    st.integers(1, 65),
    st.integers(1, 70),
)
def test_ties_are_ordered_by_row(passages, queries, top_k, block):
    passages, queries = embeddings(torch.from_numpy(passages)), torch.from_numpy(queries)
    with mock.patch.object(exact_module, "MARGIN", 1):  # small pools get a shortlist that ends within ties
        assert_ranking(search(passages, queries, top_k, block=block), *brute_force(queries, passages, top_k))


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_equal_passages_tie_in_any_block(block, monkeypatch):
    """Float32 scores differ in the last bit with the position in a block, so a plain top-k would permute equal passages."""
    monkeypatch.setattr(exact_module, "MARGIN", 4)  # the shortlist ends within the copies
    queries, passages = clustered(30, 20, k=32, d=64)
    vectors = torch.cat([passages.vectors, passages.vectors[11].expand(120, -1, -1)])
    ranking = search(embeddings(vectors), queries, 60, block=block)
    for rows, scores in zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True):
        copies = [row for row in rows if row == 11 or row >= 30]
        assert copies == [11, *range(30, 29 + len(copies))]
        assert len({score for row, score in zip(rows, scores, strict=True) if row in copies}) == 1


def test_rerank_candidates_in_any_order():
    queries, passages = clustered(10, 5)
    vectors = torch.cat([passages.vectors, passages.vectors])
    shuffled = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(seed)) for seed in range(5)])
    rows, scores = rerank_candidates(queries, embeddings(vectors), shuffled, 15)
    assert_ranking(Ranking(rows, scores), *brute_force(queries, embeddings(vectors), 15))


def test_near_ties_are_ordered_by_float64_scores():
    """The scores differ by less than the float32 resolution of a sum."""
    generator = torch.Generator().manual_seed(0)
    query = torch.nn.functional.normalize(torch.randn(1, 32, 64, generator=generator), dim=-1)
    steps = torch.randperm(200, generator=generator)
    vectors = query.repeat(200, 1, 1)
    vectors[:, 0] *= 1 - steps[:, None] * 2.0**-22
    rows, scores = brute_force(query, embeddings(vectors), 10)
    assert len(set(scores[0])) > 1
    assert_ranking(search(embeddings(vectors), query, 10, block=13), rows, scores)


def test_number_of_threads_does_not_change_ranking():
    queries, passages = clustered(300, 20, k=32, d=64)
    rankings = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            rankings.append(search(passages, queries, 10))
    finally:
        torch.set_num_threads(threads)
    for ranking in rankings[1:]:
        assert_ranking(ranking, rankings[0].rows.numpy(), rankings[0].scores.numpy())


@pytest.mark.parametrize("block", [1, 4096])
def test_top_k_larger_than_pool(block):
    queries, passages = clustered(5, 3)
    ranking = search(passages, queries, 9, block=block)
    assert ranking.rows.shape == ranking.scores.shape == (3, 9)
    assert (ranking.rows[:, 5:] == -1).all()
    assert (ranking.scores[:, 5:] == -torch.inf).all()
    assert_ranking(ranking, *brute_force(queries, passages, 9))


@pytest.mark.parametrize("margin", [1, 32])
def test_float16_scan_returns_exact_ranking(monkeypatch, margin):
    """On a GPU, float16 passages are scanned with rounded queries, so the scan alone would misorder some of them."""
    queries, passages = clustered(2000, 200, k=16, d=48)
    passages = Embeddings(passages.ids, passages.vectors.half())
    expected = brute_force(queries, passages, 10)
    assert (brute_force(queries.half(), passages, 10)[0] != expected[0]).any()
    monkeypatch.setattr(exact_module, "_scan_dtypes", lambda queries, vectors: (torch.float16, torch.float32))
    monkeypatch.setattr(exact_module, "MARGIN", margin)
    scanned = []

    def spy(queries, vectors):
        scanned.append((queries.dtype, len(queries)))
        return maxsim(queries, vectors)

    monkeypatch.setattr(exact_module, "maxsim", spy)
    assert_ranking(search(passages, queries, 10), *expected)
    of = {
        precision: max((n for dtype, n in scanned if dtype == precision), default=0)
        for precision in (torch.float16, torch.float32)
    }
    assert of[torch.float16] == 200 > of[torch.float32]  # the first scan decides most queries
    assert (of[torch.float32] > 0) == (margin == 1)


def test_float16_scan_error_is_bounded():
    queries, passages = clustered(500, 50, k=16, d=48, seed=3)
    passages = Embeddings(passages.ids, passages.vectors.half() * 3)
    longest = float(passages.vectors.float().norm(dim=2).max())
    coarse, exact = (maxsim_float64(q, passages.vectors) for q in (queries.half(), queries))
    error = np.abs(coarse - exact).max(axis=1)
    bound = exact_module.scan_error_bound(queries, longest, torch.float16).numpy()
    assert (error <= bound).all()
    assert (bound < 50 * error).all()  # tight enough that most queries are not scanned again
