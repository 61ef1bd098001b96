"""Exact search against every MaxSim score in float64."""

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
from tests.support.exact_search import assert_is, search
from tests.support.random_pools import brute_force, clustered, embeddings, maxsim_float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("n", "top_k"), [(300, 10), (40, 20), (7, 7), (300, 290)])
def test_equals_brute_force(n, top_k, dtype):
    queries, passages = clustered(n, 20)
    passages = Embeddings(passages.ids, passages.vectors.to(dtype))
    assert_is(search(passages, queries, top_k), *brute_force(queries, passages, top_k))


@pytest.mark.parametrize("block", [1, 64, 99])
def test_blocks_change_nothing(block):
    queries, passages = clustered(100, 20)  # more than twice 10 + MARGIN: a shortlist, then exact scores
    assert_is(search(passages, queries, 10, block=block), *brute_force(queries, passages, 10))


def test_gathering_in_small_pieces_changes_nothing(monkeypatch):
    queries, passages = clustered(300, 20)
    monkeypatch.setattr(exact_module, "CPU_GATHER_ELEMENTS", 5 * 8 * 32)  # five passages: 42 candidates leave a rest
    assert_is(search(passages, queries, 10), *brute_force(queries, passages, 10))


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
def test_ties_go_to_the_lower_row(passages, queries, top_k, block):
    passages, queries = embeddings(torch.from_numpy(passages)), torch.from_numpy(queries)
    with mock.patch.object(exact_module, "MARGIN", 1):  # so that small pools have a shortlist, and ties at its end
        assert_is(search(passages, queries, top_k, block=block), *brute_force(queries, passages, top_k))


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_equal_passages_tie_whatever_the_block(block, monkeypatch):
    """In float32 their scores differ in the last bit with their place in a block, so a plain top-k would mix them up."""
    monkeypatch.setattr(exact_module, "MARGIN", 4)  # the shortlist cuts through the copies
    queries, passages = clustered(30, 20, k=32, d=64)
    vectors = torch.cat([passages.vectors, passages.vectors[11].expand(120, -1, -1)])
    ranking = search(embeddings(vectors), queries, 60, block=block)
    for rows, scores in zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True):
        copies = [row for row in rows if row == 11 or row >= 30]
        assert copies == [11, *range(30, 29 + len(copies))]
        assert len({score for row, score in zip(rows, scores, strict=True) if row in copies}) == 1


def test_candidates_may_come_in_any_order():
    queries, passages = clustered(10, 5)
    vectors = torch.cat([passages.vectors, passages.vectors])
    shuffled = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(seed)) for seed in range(5)])
    rows, scores = rerank_candidates(queries, embeddings(vectors), shuffled, 15)
    assert_is(Ranking(rows, scores), *brute_force(queries, embeddings(vectors), 15))


def test_near_ties_are_settled_by_exact_scores():
    """The passages' scores differ by far less than float32 resolves in a sum: only float64 sees their order."""
    generator = torch.Generator().manual_seed(0)
    query = torch.nn.functional.normalize(torch.randn(1, 32, 64, generator=generator), dim=-1)
    steps = torch.randperm(200, generator=generator)
    vectors = query.repeat(200, 1, 1)
    vectors[:, 0] *= 1 - steps[:, None] * 2.0**-22
    rows, scores = brute_force(query, embeddings(vectors), 10)
    assert len(set(scores[0])) > 1
    assert_is(search(embeddings(vectors), query, 10, block=13), rows, scores)


def test_threads_change_nothing():
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
        assert_is(ranking, rankings[0].rows.numpy(), rankings[0].scores.numpy())


@pytest.mark.parametrize("block", [1, 4096])
def test_more_asked_for_than_there_is(block):
    queries, passages = clustered(5, 3)
    ranking = search(passages, queries, 9, block=block)
    assert ranking.rows.shape == ranking.scores.shape == (3, 9)
    assert (ranking.rows[:, 5:] == -1).all()
    assert (ranking.scores[:, 5:] == -torch.inf).all()
    assert_is(ranking, *brute_force(queries, passages, 9))


@pytest.mark.parametrize("margin", [1, 32])
def test_a_scan_in_half_precision_gives_the_exact_ranking(monkeypatch, margin):
    """What a GPU does with a pool in half precision: queries are rounded, so that the scan alone would put some wrong."""
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
    assert_is(search(passages, queries, 10), *expected)
    of = {
        wanted: max((n for dtype, n in scanned if dtype == wanted), default=0)
        for wanted in (torch.float16, torch.float32)
    }
    assert of[torch.float16] == 200 > of[torch.float32]  # most are settled by the first scan
    assert (of[torch.float32] > 0) == (margin == 1)


def test_the_error_of_a_scan_in_half_precision_is_bounded():
    queries, passages = clustered(500, 50, k=16, d=48, seed=3)
    passages = Embeddings(passages.ids, passages.vectors.half() * 3)
    longest = float(passages.vectors.float().norm(dim=2).max())
    rough, exact = (maxsim_float64(q, passages.vectors) for q in (queries.half(), queries))
    error = np.abs(rough - exact).max(axis=1)
    bound = exact_module.scan_error_bound(queries, longest, torch.float16).numpy()
    assert (error <= bound).all()
    assert (bound < 50 * error).all()  # not so wide that every query would be scanned again
