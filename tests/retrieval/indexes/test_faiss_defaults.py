from __future__ import annotations

import faiss
import pytest
import torch

from ret_lightning.errors import ConfigError
from ret_lightning.retrieval import Embeddings, ExactIndex, FaissIndex, MuveraIndex
from ret_lightning.retrieval.indexes import faiss_index as faiss_module
from ret_lightning.retrieval.indexes import muvera as muvera_module
from ret_lightning.retrieval.indexes.faiss_defaults import automatic_m, automatic_nlist, automatic_nprobe, fill_factory
from tests.support.random_pools import clustered


@pytest.mark.parametrize(
    ("vectors", "nlist"), [(0, 1), (1, 4), (16, 16), (9984, 256), (640_000, 2048), (3_200_000, 4096)]
)
def test_automatic_nlist_grows_with_pool(vectors, nlist):
    assert automatic_nlist(vectors) == nlist


def test_automatic_m_divides_width():
    assert [automatic_m(128, nbits) for nbits in (4, 8)] == [64, 32]
    for width in range(1, 200):
        for nbits in (4, 5, 8):
            assert width % automatic_m(width, nbits) == 0


def test_automatic_nprobe_is_at_most_nlist():
    assert [automatic_nprobe(nlist) for nlist in (1, 3, 100, 256, 10_000)] == [1, 3, 20, 32, 32]


def test_placeholders_are_replaced():
    values = {"nlist": 64, "m": 8, "nbits": 6, "pq": "PQ8x6"}
    assert fill_factory("IVF{nlist},{pq}", values, {"nlist": 64, "m": 8, "nbits": 6}) == "IVF64,PQ8x6"
    assert fill_factory("PQ{m}x{nbits}", values, {}) == "PQ8x6"
    assert fill_factory("Flat", values, {"nlist": None}) == "Flat"


@pytest.mark.parametrize(
    ("factory", "given", "code", "values"),
    [
        ("IVF{cell},SQ8", {}, "factory-place-unknown", {"found": "cell", "allowed": ("nlist",)}),
        ("IVF{},SQ8", {}, "factory-place-unknown", {"found": "", "allowed": ("nlist",)}),
        ("IVF{nlist,SQ8", {}, "factory-unreadable", {"found": "IVF{nlist,SQ8"}),
        ("IVF{nlist:zz},SQ8", {}, "factory-place-formatted", {"found": "IVF{nlist:zz},SQ8", "place": "nlist"}),
        ("IVF{nlist!x},SQ8", {}, "factory-place-formatted", {"found": "IVF{nlist!x},SQ8", "place": "nlist"}),
        ("IVF64,SQ8", {"nlist": 32}, "factory-without-place", {"key": "nlist", "found": 32, "factory": "IVF64,SQ8"}),
        (
            "IVF{nlist},SQ8",
            {"nbits": 8},
            "factory-without-place",
            {"key": "nbits", "found": 8, "factory": "IVF{nlist},SQ8"},
        ),
    ],
)
def test_invalid_placeholders_are_rejected(factory, given, code, values):
    with pytest.raises(ConfigError) as caught:
        fill_factory(factory, {"nlist": 64}, given)
    assert (caught.value.code, caught.value.values) == (code, values)


SHIPPED = ["Flat", "IVF{nlist},SQ4", "IVF{nlist},{pq}", "HNSW{M}_SQ8"]


@pytest.mark.slow
@pytest.mark.parametrize("factory", SHIPPED)
def test_shipped_factories_recall_of_trained_index(factory):
    queries, passages = clustered(1500, 40, k=8, d=32)
    index, exact = FaissIndex(factory), ExactIndex()
    for one in (index, exact):
        one.build(passages)
    found, best = (one.search(queries, 10).rows.tolist() for one in (index, exact))
    assert sum(len(set(a) & set(b)) for a, b in zip(found, best, strict=True)) >= 0.98 * 400
    if factory != "Flat":
        assert isinstance(index._faiss, faiss.Index)  # not `_PoolTokens`, which small pools use


@pytest.mark.parametrize("factory", SHIPPED)
@pytest.mark.parametrize("n", [0, 1, 5, 300])
def test_shipped_factories_on_tiny_pools(factory, n):
    queries, passages = clustered(300, 5)
    passages = type(passages)(passages.ids[:n], passages.vectors[:n])
    index, exact = FaissIndex(factory, candidates=2), ExactIndex()
    for one in (index, exact):
        one.build(passages)
    found = index.search(queries, 2)
    assert (found.rows >= 0).sum() == 5 * min(n, 2)
    if n <= 2:
        assert torch.equal(found.rows, exact.search(queries, 2).rows)


@pytest.mark.parametrize("factory", SHIPPED)
def test_all_passages_as_candidates_equals_exact(factory):
    queries, passages = clustered(200, 10)
    twice = type(passages)([f"t{row}" for row in range(400)], passages.vectors.repeat(2, 1, 1))
    index, exact = FaissIndex(factory, candidates=400, hits=3200), ExactIndex()
    for one in (index, exact):
        one.build(twice)
    found, best = index.search(queries, 50), exact.search(queries, 50)
    assert torch.equal(found.rows, best.rows)
    assert torch.equal(found.scores, best.scores)


def test_flat_index_equals_faiss_without_a_copy():
    queries, passages = clustered(300, 6)
    index = FaissIndex("Flat")
    index.build(passages)
    flat = faiss.IndexFlatIP(32)
    flat.add(passages.vectors.flatten(0, 1).numpy())
    vectors = queries.flatten(0, 1).numpy()
    for block in (7, 2048):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(faiss_module, "PASSAGES_PER_BLOCK", block)
            scores, tokens = index._faiss.search(vectors, 100)
        expected_scores, expected = flat.search(vectors, 100)
        torch.testing.assert_close(torch.from_numpy(scores), torch.from_numpy(expected_scores))
        assert (tokens == expected).mean() > 0.999
    assert not isinstance(index._faiss, faiss.Index)


def test_gpu_hit_limit_leaves_candidates_missing(monkeypatch):
    """FAISS returns at most 2,048 hits on a GPU; further candidates are -1."""
    queries, passages = clustered(400, 5)
    index = MuveraIndex("Flat", candidates=200)
    index.build(passages)
    monkeypatch.setattr(muvera_module, "is_on_gpu", lambda index: True)
    monkeypatch.setattr(muvera_module, "MAX_GPU_HITS", 64)
    candidates, found = index._propose(queries, 200)
    assert candidates.shape == (5, 200)
    assert found.tolist() == [64] * 5
    assert (candidates[:, 64:] == -1).all()
    assert (index.search(queries, 5).rows >= 0).all()


@pytest.mark.parametrize(
    ("settings", "code", "values"),
    [
        ({"m": 5}, "faiss-m-not-divisor", {"found": 5, "width": 64}),
        ({"nbits": 99}, "faiss-nbits-too-large", {"found": 99, "most": 16}),
    ],
)
def test_invalid_codes_are_rejected_for_small_pools(
    settings: dict[str, int], code: str, values: dict[str, int]
) -> None:
    pool = Embeddings([str(i) for i in range(20)], torch.nn.functional.normalize(torch.randn(20, 2, 64), dim=-1))
    with pytest.raises(ConfigError) as caught:
        FaissIndex("IVF{nlist},{pq}", **settings).build(pool)
    assert (caught.value.code, caught.value.values) == (code, values)
