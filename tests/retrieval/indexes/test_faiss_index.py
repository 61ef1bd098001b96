from __future__ import annotations

import subprocess
import sys

import faiss
import numpy as np
import pytest
import torch

from ret_lightning.errors import ConfigError
from ret_lightning.retrieval import Embeddings, ExactIndex, FaissIndex, Ranking
from ret_lightning.retrieval.indexes import faiss_index as faiss_module
from ret_lightning.retrieval.indexes.faiss_index import select_candidates
from tests.support.random_pools import clustered, embeddings, maxsim_float64


def search(passages: Embeddings, queries: torch.Tensor, top_k: int, index=None, **settings) -> Ranking:
    index = index or FaissIndex(**settings)
    index.build(passages)
    return index.search(queries, top_k)


def assert_equal(one: Ranking, other: Ranking) -> None:
    torch.testing.assert_close(one.rows, other.rows, rtol=0, atol=0)
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"candidates": 100},
        {"factory": "IVF16,Flat", "candidates": 100, "nprobe": 16},
        {"factory": "IVF16,Flat", "candidates": 100, "nprobe": 1000},
        {"factory": "SQfp16", "candidates": 100},
    ],
    ids=str,
)
def test_equals_exact_on_small_pools(settings, seed):
    queries, passages = clustered(300, 30, seed=seed)
    assert_equal(search(passages, queries, 10, **settings), search(passages, queries, 10, ExactIndex()))


@pytest.mark.parametrize(
    ("factory", "k", "d", "top_k", "agreement"),
    [
        ("Flat", 1, 16, 10, 1.0),
        ("Flat", 8, 32, 100, 0.98),
        ("Flat", 16, 32, 100, 0.98),
        ("IVF32,Flat", 1, 16, 10, 0.9),  # one vector a query: a cell that was not probed is not made up for by another
        ("IVF32,Flat", 16, 32, 100, 0.98),
        ("HNSW32", 16, 32, 100, 0.98),
    ],
)
def test_automatic_settings_agree_with_exact_above_the_size_that_is_ranked_whole(factory, k, d, top_k, agreement):
    queries, passages = clustered(600, 30, k, d)
    found = search(passages, queries, top_k, factory=factory).rows.tolist()
    exact = search(passages, queries, top_k, ExactIndex()).rows.tolist()
    shared = sum(len(set(one) & set(other)) for one, other in zip(found, exact, strict=True))
    assert shared >= agreement * 30 * top_k


def test_the_token_index_is_what_proposes_candidates(monkeypatch):
    """Twenty passages are proposed, by the sum of best hits of the definition; the best ten of them are returned."""
    queries, passages = clustered(300, 12)
    hits, candidates, top_k = 15, 20, 10
    k = passages.vectors.shape[1]
    tokens = passages.vectors.flatten(0, 1).double().numpy()
    exact = maxsim_float64(queries, passages.vectors)
    expected = []
    for query, scores in zip(queries.double().numpy(), exact, strict=True):
        totals = {}
        for vector in query:
            similarity = tokens @ vector
            nearest = np.argsort(-similarity)[:hits]
            worst = similarity[nearest[-1]]
            best = {}
            for token in nearest:
                best[token // k] = max(best.get(token // k, -np.inf), similarity[token])
            for passage, score in best.items():
                totals[passage] = totals.get(passage, 0.0) + score - worst
        proposed = sorted(totals, key=lambda passage: (-totals[passage], passage))[:candidates]
        assert len(proposed) == candidates
        expected.append(sorted(proposed, key=lambda passage: -scores[passage])[:top_k])
    found = search(passages, queries, top_k, hits=hits, candidates=candidates)
    assert found.rows.tolist() == expected
    assert found.rows.tolist() != search(passages, queries, top_k, ExactIndex()).rows.tolist()
    # the same when hits are added up for one query at a time
    monkeypatch.setattr(faiss_module, "BLOCK_ELEMENTS", 1)
    assert_equal(search(passages, queries, top_k, hits=hits, candidates=candidates), found)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_best_candidates_are_those_of_the_definition(count):
    generator = np.random.default_rng(0)
    n_queries, length, h, n_passages = 3, 4, 6, 5
    scores = -np.sort(-generator.standard_normal((n_queries * length, h)).astype(np.float32), axis=1)
    passages = generator.integers(0, n_passages, (n_queries * length, h))
    passages[1, 3:] = -1  # fewer hits than asked for, as FAISS reports them
    scores[1, 3:] = np.finfo(np.float32).min
    passages[4:8] = -1  # the second query hits nothing at all
    expected, found = np.full((n_queries, count), -1), []
    for query in range(n_queries):
        totals: dict[int, float] = {}
        for line in range(query * length, (query + 1) * length):
            hits = [(p, s) for p, s in zip(passages[line], scores[line], strict=True) if p >= 0]
            for passage in {p for p, _ in hits}:
                gain = max(s for p, s in hits if p == passage) - min(s for _, s in hits)
                totals[passage] = totals.get(passage, 0) + gain
        ranked = sorted(totals, key=lambda passage: (-totals[passage], passage))[:count]
        expected[query, : len(ranked)] = ranked
        found.append(len(ranked))
    candidates, number = select_candidates(scores, passages, n_queries, count)
    np.testing.assert_array_equal(candidates, expected)
    assert number.tolist() == found
    assert found[1] == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"hits": 1, "candidates": 1},
        {"factory": "IVF32,Flat", "nprobe": 1, "hits": 4, "candidates": 60},
    ],
    ids=str,
)
def test_queries_that_hit_too_few_passages_are_ranked_exactly(settings):
    queries, passages = clustered(300, 30)
    assert_equal(search(passages, queries, 50, **settings), search(passages, queries, 50, ExactIndex()))


def test_only_the_queries_that_hit_too_few_are_ranked_again():
    queries, passages = clustered(300, 30, k=2)
    found = search(passages, queries, 10, hits=6, candidates=12)
    exact = search(passages, queries, 10, ExactIndex())
    same = (found.rows == exact.rows).all(dim=1)
    assert 0 < same.sum() < 30
    assert (found.rows >= 0).all()


def test_rankings_are_full_when_all_vectors_of_a_passage_are_alike():
    generator = torch.Generator().manual_seed(0)
    one = torch.nn.functional.normalize(torch.randn(400, 1, 16, generator=generator), dim=-1)
    passages = embeddings(one.expand(-1, 32, -1).contiguous())
    queries = one[:9].expand(-1, 4, -1)
    ranking = search(passages, queries, 90, hits=64)
    assert_equal(ranking, search(passages, queries, 90, ExactIndex()))


def test_a_collapsed_pool_can_be_indexed_and_ties_go_by_row():
    """Every vector of every passage is the same, as after a training run that diverged."""
    passages = embeddings(torch.ones(300, 4, 16) / 4)
    ranking = search(passages, torch.ones(3, 4, 16) / 4, 20, factory="IVF16,Flat", candidates=40)
    assert (ranking.scores == 4).all()
    for rows in ranking.rows.tolist():
        assert rows == sorted(set(rows))


def test_more_asked_for_than_there_is():
    queries, passages = clustered(5, 3)
    assert_equal(search(passages, queries, 9), search(passages, queries, 9, ExactIndex()))
    assert (search(passages, queries, 9).rows[:, 5:] == -1).all()


@pytest.mark.parametrize("factory", ["SQ8", "IVF16,Flat", "HNSW16", "IVF16_HNSW8,SQ8"])
def test_the_same_input_gives_the_same_ranking(factory, monkeypatch):
    queries, passages = clustered(400, 30)
    settings = {"factory": factory, "candidates": 15, "hits": 40}
    assert_equal(search(passages, queries, 10, **settings), search(passages, queries, 10, **settings))
    # A graph comes out differently only now and then, so see to it that one thread makes it.
    numbers, before = [], faiss.omp_get_max_threads()
    monkeypatch.setattr(faiss, "omp_set_num_threads", numbers.append)
    search(passages, queries, 10, **settings)
    assert numbers == ([1, before] if "HNSW" in factory else [before])


def test_half_precision_vectors_are_taken():
    queries, passages = clustered(300, 10)
    passages = Embeddings(passages.ids, passages.vectors.half())
    assert_equal(search(passages, queries, 10, candidates=100), search(passages, queries, 10, ExactIndex()))


def test_automatic_nprobe_follows_nlist():
    _, passages = clustered(300, 1)
    for nlist, nprobe in ((1, 1), (4, 4), (16, 8), (64, 16), (100, 20), (101, 21)):
        index = FaissIndex(f"IVF{nlist},Flat")
        index.build(passages)
        assert faiss.try_extract_index_ivf(index._faiss).nprobe == nprobe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factory": "Flatt"}, r"no index 'Flatt' for vectors of width 32.*could not parse.*choose for example 'Flat'"),
        ({"factory": ""}, "no index ''"),
        ({"factory": "PQ7"}, "no index 'PQ7'.*multiple of the number of subquantizers"),
        ({"factory": "LSH"}, "no index 'LSH'.*inner products"),
        ({"factory": "IVF81,Flat"}, r"has nlist=81, and the pool 80 vectors \(10 passages x 8 vectors\)"),
        ({"factory": "IVF0,Flat"}, "has nlist=0.*use nlist=1 to 80, or 'Flat'"),
        ({"factory": "PQ8"}, r"'PQ8' cannot be built from 80 vectors.*training points \(80\).*clusters \(256\)"),
        ({"factory": "IVF4,PQ8"}, r"'IVF4,PQ8' cannot be built from 80 vectors.*training points"),
        ({"factory": "IDMap,Flat"}, "'IDMap,Flat' cannot be built"),
        ({"factory": "HNSW16", "nprobe": 4}, "nprobe=4 needs inverted lists, and 'HNSW16' has none"),
    ],
    ids=str,
)
def test_an_index_that_cannot_be_is_one_clear_line(settings, message):
    queries, passages = clustered(10, 2)
    index = FaissIndex(**settings)
    with pytest.raises(ConfigError, match=message) as caught:
        index.build(passages)
    assert "\n" not in str(caught.value)
    assert "/project/" not in str(caught.value)  # FAISS's own source path
    with pytest.raises(ValueError, match="build the index"):
        index.search(queries, 1)


@pytest.mark.parametrize("name", ["candidates", "hits", "nprobe"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=f"FaissIndex: {name} must be at least 1.*got 0"):
        FaissIndex(**{name: 0})


def test_a_build_that_fails_leaves_the_index_as_it_was():
    queries, passages = clustered(300, 5)
    index = FaissIndex("IVF64,Flat", candidates=100, nprobe=64)
    index.build(passages)
    before = index.search(queries, 10)
    with pytest.raises(ConfigError, match="nlist=64"):
        index.build(clustered(3, 1)[1])
    assert_equal(index.search(queries, 10), before)


def test_importing_the_package_leaves_faiss_alone():
    program = "import sys, ret_lightning.retrieval as r; r.FaissIndex(); sys.exit('faiss' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
