"""Fixed-dimensional encodings compared with the formula of the paper, evaluated per vector."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ret_lightning.retrieval.indexes.muvera_encoding import FixedDimensionalEncoding
from tests.support.random_pools import clustered, maxsim_float64


def part(vector: np.ndarray, planes: np.ndarray) -> tuple[bool, ...]:
    return tuple(bool(plane @ vector > 0) for plane in planes)


def estimate(query: np.ndarray, passage: np.ndarray, planes: np.ndarray, signs: np.ndarray) -> float:
    """Equation (1) of the paper: each query vector with the representative of its part in the passage."""
    total = 0.0
    for cut, project in zip(planes, signs, strict=True):
        of_passage = [part(vector, cut) for vector in passage]
        for vector in query:
            own = part(vector, cut)
            inside = [p for p, where in zip(passage, of_passage, strict=True) if where == own]
            if inside:
                representative = np.mean(inside, axis=0)
            else:
                differing = [sum(a != b for a, b in zip(where, own, strict=True)) for where in of_passage]
                representative = passage[int(np.argmin(differing))]
            total += (project @ vector) @ (project @ representative)
    return total


@pytest.mark.parametrize(
    ("length", "other", "repetitions", "hyperplanes", "projection"),
    [(6, 6, 3, 2, 8), (3, 9, 1, 4, 2), (1, 5, 5, 1, 16)],
)
def test_encoding_inner_product_matches_definition(length, other, repetitions, hyperplanes, projection):
    generator = torch.Generator().manual_seed(0)
    queries, passages = torch.randn(4, length, 16, generator=generator), torch.randn(5, other, 16, generator=generator)
    encoding = FixedDimensionalEncoding.sample(16, repetitions, hyperplanes, projection, seed=1)
    encoded = encoding.encode_queries(queries), encoding.encode_passages(passages)
    assert [e.shape for e in encoded] == [(4, encoding.width), (5, encoding.width)]
    assert encoding.width == repetitions * 2**hyperplanes * projection
    planes, signs = encoding.planes.double().numpy(), encoding.signs.double().numpy()
    expected = [[estimate(q, p, planes, signs) for p in passages.double().numpy()] for q in queries.double().numpy()]
    np.testing.assert_allclose((encoded[0] @ encoded[1].T).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_signs_preserve_inner_products_on_average():
    encoding = FixedDimensionalEncoding.sample(8, repetitions=4000, hyperplanes=1, projection=2, seed=0)
    vectors = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    projected = encoding.signs @ vectors.T
    products = (projected[:, :, 0] * projected[:, :, 1]).sum(dim=1)
    assert float(products.mean()) == pytest.approx(float(vectors[0] @ vectors[1]), abs=0.3)  # 5 standard deviations


def test_estimate_correlates_with_maxsim():
    queries, passages = clustered(200, 20, k=8, d=32)
    encoding = FixedDimensionalEncoding.sample(32, repetitions=40, hyperplanes=3, projection=16, seed=0)
    estimated = encoding.encode_queries(queries) @ encoding.encode_passages(passages.vectors).T / 40
    exact = maxsim_float64(queries, passages.vectors)
    correlation = np.corrcoef(estimated.numpy().ravel(), exact.ravel())[0, 1]
    assert correlation > 0.9
    assert (estimated.numpy() < exact + 0.5).all()  # lower on average: no mean is nearer than the nearest vector
