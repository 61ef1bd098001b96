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
def test_ranking_equals_exact_on_small_pools(settings, seed):
    queries, passages = clustered(300, 30, seed=seed)
    assert_equal(search(passages, queries, 10, **settings), search(passages, queries, 10, ExactIndex()))


@pytest.mark.parametrize(
    ("factory", "k", "d", "top_k", "recall"),
    [
        ("Flat", 1, 16, 10, 1.0),
        ("Flat", 8, 32, 100, 0.98),
        ("Flat", 16, 32, 100, 0.98),
        ("IVF32,Flat", 1, 16, 10, 0.9),  # with one vector per query, lists that are not probed are lost
        ("IVF32,Flat", 16, 32, 100, 0.98),
        ("HNSW32", 16, 32, 100, 0.98),
    ],
)
def test_recall_of_automatic_settings(factory, k, d, top_k, recall):
    queries, passages = clustered(600, 30, k, d)
    found = search(passages, queries, top_k, factory=factory).rows.tolist()
    exact = search(passages, queries, top_k, ExactIndex()).rows.tolist()
    shared = sum(len(set(one) & set(other)) for one, other in zip(found, exact, strict=True))
    assert shared >= recall * 30 * top_k


def test_candidates_come_from_token_index(monkeypatch):
    """The index proposes 20 passages by the sum of best hits and returns the best 10 of them."""
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
    # One query per block yields the same.
    monkeypatch.setattr(faiss_module, "BLOCK_ELEMENTS", 1)
    assert_equal(search(passages, queries, top_k, hits=hits, candidates=candidates), found)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_select_candidates_matches_definition(count):
    generator = np.random.default_rng(0)
    n_queries, length, h, n_passages = 3, 4, 6, 5
    scores = -np.sort(-generator.standard_normal((n_queries * length, h)).astype(np.float32), axis=1)
    passages = generator.integers(0, n_passages, (n_queries * length, h))
    passages[1, 3:] = -1  # fewer hits than requested, as FAISS reports them
    scores[1, 3:] = np.finfo(np.float32).min
    passages[4:8] = -1  # the second query has no hits
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
def test_short_queries_are_ranked_exactly(settings):
    queries, passages = clustered(300, 30)
    assert_equal(search(passages, queries, 50, **settings), search(passages, queries, 50, ExactIndex()))


def test_only_short_queries_are_ranked_exactly():
    queries, passages = clustered(300, 30, k=2)
    found = search(passages, queries, 10, hits=6, candidates=12)
    exact = search(passages, queries, 10, ExactIndex())
    same = (found.rows == exact.rows).all(dim=1)
    assert 0 < same.sum() < 30
    assert (found.rows >= 0).all()


def test_passages_of_equal_vectors_have_full_rankings():
    generator = torch.Generator().manual_seed(0)
    one = torch.nn.functional.normalize(torch.randn(400, 1, 16, generator=generator), dim=-1)
    passages = embeddings(one.expand(-1, 32, -1).contiguous())
    queries = one[:9].expand(-1, 4, -1)
    ranking = search(passages, queries, 90, hits=64)
    assert_equal(ranking, search(passages, queries, 90, ExactIndex()))


def test_collapsed_embeddings_are_ranked_by_row():
    """All vectors are equal, as after a training run that diverged."""
    passages = embeddings(torch.ones(300, 4, 16) / 4)
    ranking = search(passages, torch.ones(3, 4, 16) / 4, 20, factory="IVF16,Flat", candidates=40)
    assert (ranking.scores == 4).all()
    for rows in ranking.rows.tolist():
        assert rows == sorted(set(rows))


def test_top_k_larger_than_pool():
    queries, passages = clustered(5, 3)
    assert_equal(search(passages, queries, 9), search(passages, queries, 9, ExactIndex()))
    assert (search(passages, queries, 9).rows[:, 5:] == -1).all()


@pytest.mark.parametrize("factory", ["SQ8", "IVF16,Flat", "HNSW16", "IVF16_HNSW8,SQ8"])
def test_ranking_is_reproducible(factory, monkeypatch):
    queries, passages = clustered(400, 30)
    settings = {"factory": factory, "candidates": 15, "hits": 40}
    assert_equal(search(passages, queries, 10, **settings), search(passages, queries, 10, **settings))
    # Graphs differ only occasionally, so check the number of threads instead.
    numbers, before = [], faiss.omp_get_max_threads()
    monkeypatch.setattr(faiss, "omp_set_num_threads", numbers.append)
    search(passages, queries, 10, **settings)
    assert numbers == ([1, before] if "HNSW" in factory else [before])


def test_float16_vectors():
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
    ("settings", "code", "values", "reason"),
    [
        ({"factory": "Flatt"}, "faiss-factory-unknown", {"found": "Flatt", "width": 32}, "could not parse"),
        ({"factory": ""}, "faiss-factory-unknown", {"found": ""}, ""),
        ({"factory": "PQ7"}, "faiss-factory-unknown", {"found": "PQ7"}, "multiple of the number of subquantizers"),
        ({"factory": "LSH"}, "faiss-factory-unknown", {"found": "LSH"}, ""),
        ({"factory": "IVF81,Flat"}, "faiss-nlist-too-large", {"found": 81, "most": 80}, None),
        ({"factory": "IVF0,Flat"}, "faiss-nlist-too-large", {"found": 0, "most": 80}, None),
        ({"factory": "PQ8"}, "faiss-index-not-built", {"factory": "PQ8", "vectors": 80}, "clusters (256)"),
        ({"factory": "IVF4,PQ8"}, "faiss-index-not-built", {"factory": "IVF4,PQ8"}, "training points"),
        ({"factory": "IDMap,Flat"}, "faiss-index-not-built", {"factory": "IDMap,Flat"}, ""),
        ({"factory": "HNSW16", "nprobe": 4}, "faiss-nprobe-without-ivf", {"found": 4, "factory": "HNSW16"}, None),
    ],
    ids=str,
)
def test_impossible_index_is_reported_in_one_line(settings, code, values, reason):
    queries, passages = clustered(10, 2)
    index = FaissIndex(**settings)
    with pytest.raises(ConfigError) as caught:
        index.build(passages)
    assert caught.value.code == code
    assert caught.value.values | values == caught.value.values
    assert reason is None or reason in caught.value.reason
    assert "\n" not in str(caught.value)
    assert "/project/" not in str(caught.value)  # FAISS's own source path
    with pytest.raises(ValueError, match="call build"):
        index.search(queries, 1)


@pytest.mark.parametrize("name", ["candidates", "hits", "nprobe"])
def test_settings_below_one_are_rejected(name):
    with pytest.raises(ConfigError) as caught:
        FaissIndex(**{name: 0})
    assert (caught.value.code, caught.value.key, caught.value.found) == ("index-setting-too-small", name, 0)


def test_failed_build_keeps_index():
    queries, passages = clustered(300, 5)
    index = FaissIndex("IVF64,Flat", candidates=100, nprobe=64)
    index.build(passages)
    before = index.search(queries, 10)
    with pytest.raises(ConfigError) as caught:
        index.build(clustered(3, 1)[1])
    assert (caught.value.code, caught.value.found) == ("faiss-nlist-too-large", 64)
    assert_equal(index.search(queries, 10), before)


def test_import_does_not_load_faiss():
    program = "import sys, ret_lightning.retrieval as r; r.FaissIndex(); sys.exit('faiss' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
