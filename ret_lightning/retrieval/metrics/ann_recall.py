"""Recall of an approximate index against exact search, and the resulting loss of recall.

Shapes: n queries, K ranked passages per query, N passages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ret_lightning.retrieval.indexes.base import Index
from ret_lightning.retrieval.indexes.exact import ExactIndex
from ret_lightning.retrieval.metrics.relevance import positive_hits
from ret_lightning.retrieval.ranking import Ranking
from ret_lightning.retrieval.store.embeddings import Embeddings

# Metric names.
ANN_RECALL, RECALL_LOSS, FALLBACK_SHARE = "ann_recall", "recall_loss", "fallback_share"


def measure_ann_recall(
    index: Index,
    passages: Embeddings,
    queries: Tensor,
    positives: Sequence[Sequence[str]],
    sample: int = 100,
    seed: int = 0,
    k: int = 10,
    recall_at: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Search a sample of the queries with an index and with exact search, and compare the rankings.

    Args:
        index: index built from `passages`.
        passages: the N passages, in memory or from an `EmbeddingStore`.
        queries: (Nq, Lq, d) tensor.
        positives: for each query, the ids of its positives.
        sample: number of queries to sample without replacement; all queries if there are fewer.
        seed: random seed of the sample.
        k: K of the recall against exact search.
        recall_at: values of K of the recall of positives.

    Returns:
        The metrics of `compare_rankings`. For an index with candidates also `fallback_share`, the fraction of queries with
        too few candidates, and the metrics without its exact fallback, such as `recall_loss_without_fallback@K`.
    """
    sampled = sample_queries(len(queries), sample, seed)
    exact = ExactIndex(index.device)
    exact.build(passages)
    depth = max(k, *recall_at)
    found, best = index.search(queries[sampled], depth), exact.search(queries[sampled], depth).rows
    own = [positives[row] for row in sampled.tolist()]
    result = compare_rankings(found.rows, best, passages.ids, own, k, recall_at)
    if found.short is not None:
        result[FALLBACK_SHARE] = short_share(found)
        proposed = index.search_candidates(queries[sampled], depth).rows
        result |= without_fallback(compare_rankings(proposed, best, passages.ids, own, k, recall_at))
    return result


def short_share(ranking: Ranking) -> float:
    """Return the fraction of queries with too few candidates from an approximate index, in [0, 1]."""
    return 0.0 if ranking.short is None or not len(ranking) else float(ranking.short.double().mean())


def without_fallback(compared: Mapping[str, float]) -> dict[str, float]:
    """Rename metrics computed without the exact fallback: `recall_loss@5` to `recall_loss_without_fallback@5`."""
    return {"_without_fallback@".join(name.split("@")): value for name, value in compared.items()}


def sample_queries(count: int, size: int, seed: int) -> Tensor:
    """Sample query positions without replacement.

    Args:
        count: number of queries.
        size: number of positions to sample; all positions if there are fewer.
        seed: random seed; the same arguments yield the same sample.

    Returns:
        (min(size, count),) int64 unique positions below `count`, ascending.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size].sort().values


def compare_rankings(
    found: Tensor,
    exact: Tensor,
    pool_ids: Sequence[str],
    positives: Sequence[Sequence[str]],
    k: int = 10,
    recall_at: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Compare the rankings of an index with the exact rankings of the same queries.

    Args:
        found: (n, K) int64 positions in the candidate pool, best first, -1 for none (`Ranking.rows`); n at least 1.
        exact: (n, K') int64, the rows of exact search. K and K' are at least the largest of k and `recall_at`.
        pool_ids: the N passage ids.
        positives: for each query, the ids of its positives.
        k: K of the recall against exact search.
        recall_at: values of K of the recall of positives.

    Returns:
        `ann_recall@k`: the fraction of the first k passages of exact search that are among the first k passages found,
        averaged over queries, in [0, 1]. `recall_loss@K` for each K: recall@K of exact search minus recall@K of the index;
        negative if the index omits passages that exact search ranks before a positive.

    Raises:
        ValueError: if there are no queries or their numbers differ.
    """
    if len(found) == 0 or found.shape[0] != exact.shape[0]:
        raise ValueError(
            f"compare_rankings: expected the same number of queries, at least 1, got {len(found)} and {len(exact)}"
        )
    expected, got = exact[:, :k], found[:, :k]
    shared = ((expected[:, :, None] == got[:, None, :]).any(dim=2) & (expected >= 0)).sum(dim=1)
    recalled = shared / (expected >= 0).sum(dim=1).clamp(min=1)
    result = {f"{ANN_RECALL}@{k}": float(recalled.double().mean())}
    hits_found, hits_exact = (positive_hits(rows, pool_ids, positives) for rows in (found, exact))
    for at in recall_at:
        recalls = [float(hits[:, :at].any(dim=1).double().mean()) for hits in (hits_exact, hits_found)]
        result[f"{RECALL_LOSS}@{at}"] = recalls[0] - recalls[1]
    return result
