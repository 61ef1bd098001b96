"""Random candidate pools, and the ranking of a pool computed with NumPy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ret_lightning.retrieval import Embeddings


def embeddings(vectors: Tensor) -> Embeddings:
    return Embeddings([f"p{row}" for row in range(len(vectors))], vectors)


def clustered(n: int, n_queries: int, k: int = 8, d: int = 32, seed: int = 0) -> tuple[Tensor, Embeddings]:
    """Create passages around topics, with a separate direction for each of the k vectors, and queries near passages."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, d, generator=generator)

    topic = torch.randint(0, max(2, n // 20), (n,), generator=generator)
    passages = noise(k) + 0.5 * noise(n // 20 + 2, 1)[topic] + 0.5 * noise(n, 1) + 0.5 * noise(n, k)
    gold = torch.randint(0, n, (n_queries,), generator=generator)
    queries = passages[gold] + noise(n_queries, 1) + noise(n_queries, k)
    return normalize(queries, dim=-1), embeddings(normalize(passages, dim=-1))


def brute_force(queries: Tensor, passages: Embeddings, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rank by every MaxSim score in float64 rounded to float32, then by row; -1 and -inf beyond the pool."""
    scores = maxsim_float64(queries, passages.vectors).astype(np.float32)
    n_queries, n_passages = scores.shape
    rows = np.full((n_queries, top_k), -1)
    best = np.full((n_queries, top_k), -np.inf, dtype=np.float32)
    for query in range(n_queries):
        order = sorted(range(n_passages), key=lambda row: (-scores[query, row], row))[:top_k]
        rows[query, : len(order)] = order
        best[query, : len(order)] = scores[query, order]
    return rows, best


def maxsim_float64(queries: Tensor, vectors: Tensor) -> np.ndarray:
    similarity = np.einsum("aqd,bpd->abqp", queries.double().numpy(), vectors.double().numpy())
    return similarity.max(axis=3).sum(axis=2)
