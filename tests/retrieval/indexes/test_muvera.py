from __future__ import annotations

import numpy as np
import pytest
import torch

from ret_lightning.errors import ConfigError
from ret_lightning.retrieval import Embeddings, ExactIndex, MuveraIndex
from ret_lightning.retrieval.indexes.fixed_dimensional import FixedDimensionalEncoding
from tests.support.random_pools import clustered, embeddings, maxsim_float64


def part(vector: np.ndarray, planes: np.ndarray) -> tuple[bool, ...]:
    return tuple(bool(plane @ vector > 0) for plane in planes)


def estimate(query: np.ndarray, passage: np.ndarray, planes: np.ndarray, signs: np.ndarray) -> float:
    """Equation (1) of the paper, without encodings: each query vector with what represents its part in the passage."""
    total = 0.0
    for cut, project in zip(planes, signs, strict=True):
        of_passage = [part(vector, cut) for vector in passage]
        for vector in query:
            own = part(vector, cut)
            inside = [p for p, where in zip(passage, of_passage, strict=True) if where == own]
            if inside:
                standing = np.mean(inside, axis=0)
            else:
                differing = [sum(a != b for a, b in zip(where, own, strict=True)) for where in of_passage]
                standing = passage[int(np.argmin(differing))]
            total += (project @ vector) @ (project @ standing)
    return total


@pytest.mark.parametrize(
    ("length", "other", "repetitions", "hyperplanes", "projection"),
    [(6, 6, 3, 2, 8), (3, 9, 1, 4, 2), (1, 5, 5, 1, 16)],
)
def test_the_inner_product_of_encodings_is_the_definition(length, other, repetitions, hyperplanes, projection):
    generator = torch.Generator().manual_seed(0)
    queries, passages = torch.randn(4, length, 16, generator=generator), torch.randn(5, other, 16, generator=generator)
    encoding = FixedDimensionalEncoding.draw(16, repetitions, hyperplanes, projection, seed=1)
    encoded = encoding.queries(queries), encoding.passages(passages)
    assert [e.shape for e in encoded] == [(4, encoding.width), (5, encoding.width)]
    assert encoding.width == repetitions * 2**hyperplanes * projection
    planes, signs = encoding.planes.double().numpy(), encoding.signs.double().numpy()
    expected = [[estimate(q, p, planes, signs) for p in passages.double().numpy()] for q in queries.double().numpy()]
    np.testing.assert_allclose((encoded[0] @ encoded[1].T).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_signs_keep_inner_products_on_average():
    encoding = FixedDimensionalEncoding.draw(8, repetitions=4000, hyperplanes=1, projection=2, seed=0)
    vectors = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    projected = encoding.signs @ vectors.T
    products = (projected[:, :, 0] * projected[:, :, 1]).sum(dim=1)
    assert float(products.mean()) == pytest.approx(float(vectors[0] @ vectors[1]), abs=0.3)  # 5 standard deviations


def test_the_estimate_follows_maxsim():
    queries, passages = clustered(200, 20, k=8, d=32)
    encoding = FixedDimensionalEncoding.draw(32, repetitions=40, hyperplanes=3, projection=16, seed=0)
    estimated = encoding.queries(queries) @ encoding.passages(passages.vectors).T / 40
    exact = maxsim_float64(queries, passages.vectors)
    correlation = np.corrcoef(estimated.numpy().ravel(), exact.ravel())[0, 1]
    assert correlation > 0.9
    assert (estimated.numpy() < exact + 0.5).all()  # it stays below, since no mean is nearer than the nearest vector


def ranked(index, queries, passages, top_k=10):
    index.build(passages)
    return index.search(queries, top_k)


@pytest.mark.parametrize(
    ("settings", "agreement"),
    [({}, 0.97), ({"factory": "Flat", "hyperplanes": 2}, 0.97), ({"factory": "IVF16,SQ8", "probes": 12}, 0.95)],
)
def test_agreement_on_a_clustered_pool(settings, agreement):
    queries, passages = clustered(2000, 40, k=16, d=32)
    found = ranked(MuveraIndex(candidates=256, **settings), queries, passages)
    exact = ranked(ExactIndex(), queries, passages)
    shared = [len(set(a) & set(b)) for a, b in zip(found.rows.tolist(), exact.rows.tolist(), strict=True)]
    assert sum(shared) >= agreement * 40 * 10


def test_with_all_passages_as_candidates_it_is_exact_ties_included():
    queries, passages = clustered(100, 20)
    twice = embeddings(passages.vectors.repeat(2, 1, 1))
    for candidates in (199, 200, 500):
        index = MuveraIndex("Flat", candidates=candidates)
        found, exact = ranked(index, queries, twice), ranked(ExactIndex(), queries, twice)
        assert torch.equal(found.rows, exact.rows)
        assert torch.equal(found.scores, exact.scores)


def test_candidates_that_few_probes_find_are_filled_up():
    queries, passages = clustered(600, 20)
    index = MuveraIndex("IVF64,Flat", candidates=50, probes=1)
    found, exact = ranked(index, queries, passages, 50), ranked(ExactIndex(), queries, passages, 50)
    assert (found.rows >= 0).all()
    assert torch.equal(found.rows, exact.rows)  # a cell holds ten of the 600: every query is short of 50


def test_the_same_seed_gives_the_same_ranking():
    queries, passages = clustered(500, 20)

    def rows(seed: int) -> torch.Tensor:
        return ranked(MuveraIndex("IVF16,SQ8", candidates=12, seed=seed), queries, passages).rows

    assert torch.equal(rows(0), rows(0))
    assert not torch.equal(rows(0), rows(1))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_short_vectors_small_pools_and_other_lengths(k):
    queries, passages = clustered(300, 7, k=k, d=8)
    short = Embeddings(passages.ids, passages.vectors.half())
    found = ranked(MuveraIndex(candidates=299), queries[:, :1], short, 300)
    assert torch.equal(found.rows, ranked(ExactIndex(), queries[:, :1], short, 300).rows)
    found = ranked(MuveraIndex(), queries.repeat(1, 3, 1)[:1], embeddings(passages.vectors[:3]), 5)
    assert found.rows[0].tolist()[3:] == [-1, -1]
    assert ranked(MuveraIndex(), queries, embeddings(passages.vectors[:0]), 2).rows.tolist() == [[-1, -1]] * 7


@pytest.mark.parametrize(
    "name", ["candidates", "repetitions", "hyperplanes", "projection", "cells", "probes", "sample"]
)
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=f"^MuveraIndex: {name} must be at least 1"):
        MuveraIndex(**{name: 0})


def test_more_cells_than_passages_are_told():
    with pytest.raises(ConfigError, match="MuveraIndex: 'IVF512,SQ8' asks for 512 cells, and the pool has 300 vectors"):
        MuveraIndex(cells=512).build(clustered(300, 1)[1])


def test_encodings_that_no_memory_would_hold_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"20 repetitions of 2\^40 parts with 16 numbers each make an encoding of \d+ numbers"
    ):
        MuveraIndex(hyperplanes=40)
