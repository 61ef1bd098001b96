from __future__ import annotations

import faiss
import pytest
import torch

from ret_lightning.errors import ConfigError
from ret_lightning.retrieval import Embeddings, ExactIndex, FaissIndex, MuveraIndex
from ret_lightning.retrieval.indexes import faiss_index as faiss_module
from ret_lightning.retrieval.indexes import muvera as muvera_module
from ret_lightning.retrieval.indexes.faiss_build import goes_on_gpu, is_on_gpu
from ret_lightning.retrieval.indexes.faiss_defaults import automatic_cells, automatic_codes, automatic_probes, filled_in
from tests.support.random_pools import clustered


@pytest.mark.parametrize(
    ("vectors", "cells"), [(0, 1), (1, 4), (16, 16), (9984, 256), (640_000, 2048), (3_200_000, 4096)]
)
def test_cells_follow_the_pool(vectors, cells):
    assert automatic_cells(vectors) == cells


def test_codes_divide_the_width():
    assert [automatic_codes(128, bits) for bits in (4, 8)] == [64, 32]
    for width in range(1, 200):
        for bits in (4, 5, 8):
            assert width % automatic_codes(width, bits) == 0


def test_probes_are_never_more_than_cells():
    assert [automatic_probes(cells) for cells in (1, 3, 100, 256, 10_000)] == [1, 3, 20, 32, 32]


def test_places_are_filled_in():
    values = {"cells": 64, "codes": 8, "bits": 6, "pq": "PQ8x6"}
    assert filled_in("IVF{cells},{pq}", values, {"cells": 64, "codes": 8, "bits": 6}) == "IVF64,PQ8x6"
    assert filled_in("PQ{codes}x{bits}", values, {}) == "PQ8x6"
    assert filled_in("Flat", values, {"cells": None}) == "Flat"


@pytest.mark.parametrize(
    ("factory", "given", "message"),
    [
        ("IVF{cell},SQ8", {}, r"has a place \{cell\}, and there is only \{cells\}"),
        ("IVF{},SQ8", {}, r"has a place \{\}"),
        ("IVF{cells,SQ8", {}, "cannot be read"),
        ("IVF{cells:zz},SQ8", {}, r"write the place as \{cells\} and no more"),
        ("IVF{cells!x},SQ8", {}, r"write the place as \{cells\} and no more"),
        (
            "IVF64,SQ8",
            {"cells": 32},
            r"cells=32 has no place in factory 'IVF64,SQ8'; leave it out, or write \{cells\} there",
        ),
        ("IVF{cells},SQ8", {"bits": 8}, "bits=8 has no place"),
    ],
)
def test_places_and_settings_that_do_not_meet_are_refused(factory, given, message):
    with pytest.raises(ConfigError, match=message):
        filled_in(factory, {"cells": 64}, given)


SHIPPED = ["Flat", "IVF{cells},SQ4", "IVF{cells},{pq}", "HNSW{links}_SQ8"]


@pytest.mark.slow
@pytest.mark.parametrize("factory", SHIPPED)
def test_shipped_indexes_agree_with_exact_on_a_pool_that_is_large_enough_to_train(factory):
    queries, passages = clustered(1500, 40, k=8, d=32)
    index, exact = FaissIndex(factory), ExactIndex()
    for one in (index, exact):
        one.build(passages)
    found, best = (one.search(queries, 10).rows.tolist() for one in (index, exact))
    assert sum(len(set(a) & set(b)) for a, b in zip(found, best, strict=True)) >= 0.98 * 400
    if factory != "Flat":
        assert isinstance(index._tokens, faiss.Index)  # not the pool's own vectors, as for fewer passages


@pytest.mark.parametrize("factory", SHIPPED)
@pytest.mark.parametrize("n", [0, 1, 5, 300])
def test_tiny_pools_need_no_other_settings(factory, n):
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
def test_all_passages_as_candidates_are_ranked_as_exact_does_ties_included(factory):
    queries, passages = clustered(200, 10)
    twice = type(passages)([f"t{row}" for row in range(400)], passages.vectors.repeat(2, 1, 1))
    index, exact = FaissIndex(factory, candidates=400, hits=3200), ExactIndex()
    for one in (index, exact):
        one.build(twice)
    found, best = index.search(queries, 50), exact.search(queries, 50)
    assert torch.equal(found.rows, best.rows)
    assert torch.equal(found.scores, best.scores)


def test_settings_reach_faiss():
    _, passages = clustered(1300, 1)
    index = FaissIndex("IVF{cells},{pq}", cells=50, probes=7, codes=4, bits=6, sample=5000)
    index.build(passages)
    ivf = faiss.downcast_index(index._tokens)
    assert (ivf.nlist, ivf.nprobe, ivf.pq.M, ivf.pq.nbits) == (50, 7, 4, 6)
    index = FaissIndex("HNSW{links}_SQ8", links=8)
    index.build(passages)
    assert index._tokens.hnsw.nb_neighbors(1) == 8
    index = FaissIndex("IVF{cells},{pq}")
    index.build(passages)
    assert isinstance(faiss.downcast_index(index._tokens), faiss.IndexIVFPQFastScan)


def test_the_flat_index_holds_no_vectors_and_finds_what_faiss_does():
    queries, passages = clustered(300, 6)
    index = FaissIndex("Flat")
    index.build(passages)
    flat = faiss.IndexFlatIP(32)
    flat.add(passages.vectors.flatten(0, 1).numpy())
    vectors = queries.flatten(0, 1).numpy()
    for block in (7, 2048):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(faiss_module, "PASSAGES_A_BLOCK", block)
            scores, tokens = index._tokens.search(vectors, 100)
        expected_scores, expected = flat.search(vectors, 100)
        torch.testing.assert_close(torch.from_numpy(scores), torch.from_numpy(expected_scores))
        assert (tokens == expected).mean() > 0.999
    assert not isinstance(index._tokens, faiss.Index)


def test_the_sample_is_drawn_by_the_seed():
    _, passages = clustered(1300, 1)

    def centroids(seed: int):
        index = FaissIndex("IVF16,SQ8", sample=500, seed=seed)
        index.build(passages)
        return faiss.downcast_index(index._tokens).quantizer.reconstruct_n(0, 16).tolist()

    assert centroids(0) == centroids(0) != centroids(1)


@pytest.mark.parametrize("factory", ["IVF8,PQ4x5", "PQ4x5", "OPQ4,IVF8,PQ4x5"])
def test_codes_are_not_trained_for_a_search_that_is_not_used(factory):
    """FAISS's factory would, and takes many times longer."""
    index = FaissIndex(factory)
    index.build(clustered(400, 1)[1])
    own = faiss.try_extract_index_ivf(index._tokens)
    own = faiss.downcast_index(own if own is not None else index._tokens)
    assert not own.do_polysemous_training
    assert faiss.index_factory(32, "IVF8,PQ4x5").do_polysemous_training


@pytest.mark.parametrize(
    ("gpu", "device", "gpus", "expected"),
    [
        (None, "cpu", 2, False),
        (None, "cuda", 2, True),
        (None, "cuda", 0, False),
        (True, "cpu", 1, True),
        (False, "cuda", 1, False),
    ],
)
def test_codes_are_those_of_where_faiss_searches(gpu, device, gpus, expected, monkeypatch):
    """faiss-cpu beside a model on a GPU keeps the codes that a CPU scans fastest."""
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    recipes = []
    monkeypatch.setattr(faiss_module, "build_faiss", lambda recipe, *_: recipes.append(recipe))
    FaissIndex("IVF{cells},{pq}", gpu=gpu, device=device)._build_proposals(clustered(2000, 1, k=8)[1])
    assert goes_on_gpu(gpu, torch.device(device)) is expected
    assert recipes[0].factory.endswith("PQ8x8" if expected else "PQ16x4fs")


@pytest.mark.parametrize(("device", "number"), [("cuda", 3), ("cuda:1", 1)])
def test_a_rank_builds_on_its_own_gpu(device, number, monkeypatch):
    used = []
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda _, at, index: used.append(at) or index, raising=False)
    FaissIndex("IVF16,SQ8", device=device)._build_proposals(clustered(300, 1)[1])
    assert used == [number]


def test_an_index_behind_a_transform_is_seen_to_be_on_a_gpu(monkeypatch):
    class GpuIndexFlat:
        pass

    inner = faiss.index_factory(32, "OPQ8,IVF4,Flat")
    assert isinstance(inner, faiss.IndexPreTransform)
    assert not is_on_gpu(inner)
    assert not is_on_gpu(faiss.IndexFlatIP(4))
    assert is_on_gpu(GpuIndexFlat())
    monkeypatch.setattr(faiss, "downcast_index", lambda index: GpuIndexFlat())
    assert is_on_gpu(inner)


def test_a_gpu_that_finds_fewer_than_candidates_are_asked_for(monkeypatch):
    """FAISS gives 2,048 at most there; the rest of the candidates are missing, and no error."""
    queries, passages = clustered(400, 5)
    index = MuveraIndex("Flat", candidates=200)
    index.build(passages)
    monkeypatch.setattr(muvera_module, "is_on_gpu", lambda index: True)
    monkeypatch.setattr(muvera_module, "MOST_HITS_ON_A_GPU", 64)
    candidates, found = index._propose(queries, 200)
    assert candidates.shape == (5, 200)
    assert found.tolist() == [64] * 5
    assert (candidates[:, 64:] == -1).all()
    assert (index.search(queries, 5).rows >= 0).all()


def test_a_gpu_that_faiss_does_not_have_is_told():
    with pytest.raises(ConfigError, match=r"index: gpu=true, and this FAISS has no GPU; install faiss-gpu"):
        FaissIndex("IVF16,SQ8", gpu=True).build(clustered(300, 1)[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"codes": 5}, "codes=5 must divide the width of the vectors, 64"), ({"bits": 99}, "bits=99 must be at most 16")],
)
def test_codes_that_cannot_be_are_refused_for_small_pools_too(settings: dict[str, int], message: str) -> None:
    pool = Embeddings([str(i) for i in range(20)], torch.nn.functional.normalize(torch.randn(20, 2, 64), dim=-1))
    with pytest.raises(ConfigError, match=message):
        FaissIndex("IVF{cells},{pq}", **settings).build(pool)
