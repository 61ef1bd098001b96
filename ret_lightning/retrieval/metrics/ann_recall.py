"""Recall of an approximate index against exact search, and the recall of positives that it loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ret_lightning.retrieval.indexes.base import Index
from ret_lightning.retrieval.indexes.exact import ExactIndex
from ret_lightning.retrieval.metrics.relevance import positive_hits
from ret_lightning.retrieval.ranking import Ranking
from ret_lightning.retrieval.store.embeddings import Embeddings

# Metric names in logs.
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
    """Search a sample of the queries with an index and exactly, and compare the rankings.

    Args:
        index: built of `passages`.
        passages: N passages, in memory or of a store.
        queries: (Nq, Lq, d).
        positives: for each query, the ids of its positives.
        sample: queries to search, sampled without replacement; all, if there are not more.
        seed: of the sample.
        k, recall_at: see `compare_rankings`.

    Returns:
        The metrics of `compare_rankings`. Of an index with candidates also `fallback_share`, the share of the queries for which
        it found too few, and the same metrics without its exact fallback: `recall_loss_without_fallback@K` and so on.
    """
    drawn = sample_queries(len(queries), sample, seed)
    exact = ExactIndex(index.device)
    exact.build(passages)
    depth = max(k, *recall_at)
    found, best = index.search(queries[drawn], depth), exact.search(queries[drawn], depth).rows
    own = [positives[row] for row in drawn.tolist()]
    result = compare_rankings(found.rows, best, passages.ids, own, k, recall_at)
    if found.short is not None:
        result[FALLBACK_SHARE] = short_share(found)
        proposed = index.search_candidates(queries[drawn], depth).rows
        result |= without_fallback(compare_rankings(proposed, best, passages.ids, own, k, recall_at))
    return result


def short_share(ranking: Ranking) -> float:
    """The share of the queries for which an approximate index found too few candidates, in [0, 1]."""
    return 0.0 if ranking.short is None or not len(ranking) else float(ranking.short.double().mean())


def without_fallback(compared: Mapping[str, float]) -> dict[str, float]:
    """Metrics of rankings without the exact fallback, renamed: `recall_loss@5` to `recall_loss_without_fallback@5`."""
    return {"_without_fallback@".join(name.split("@")): value for name, value in compared.items()}


def sample_queries(count: int, size: int, seed: int) -> Tensor:
    """(min(size, count),) int64: that many different positions below `count`, ascending; the same for the same arguments."""
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
        found: (n, K) int64, positions in the pool, best first, -1 for none (`Ranking.rows`).
        exact: (n, K') int64, the same of exact search; K and K' at least the largest of k and `recall_at`, n above 0.
        pool_ids: the N passage ids.
        positives: for each query, the ids of its positives.
        k: of the recall against exact search.
        recall_at: the K of the recall of positives.

    Returns:
        `ann_recall@k`: the share of the exact first k passages that are among the first k found, a mean over the queries, in
        [0, 1]. And for each K, `recall_loss@K`, the recall loss: recall@K (a positive among the first K) of exact search
        less that of the index; negative where the index happened to leave out what ranked before a positive.
    """
    if len(found) == 0 or found.shape[0] != exact.shape[0]:
        raise ValueError(
            f"compare_rankings: rankings of {len(found)} and {len(exact)} queries; they need the same, above 0"
        )
    wanted, got = exact[:, :k], found[:, :k]
    shared = ((wanted[:, :, None] == got[:, None, :]).any(dim=2) & (wanted >= 0)).sum(dim=1)
    recalled = shared / (wanted >= 0).sum(dim=1).clamp(min=1)
    result = {f"{ANN_RECALL}@{k}": float(recalled.double().mean())}
    hits_found, hits_exact = (positive_hits(rows, pool_ids, positives) for rows in (found, exact))
    for at in recall_at:
        recalls = [float(hits[:, :at].any(dim=1).double().mean()) for hits in (hits_exact, hits_found)]
        result[f"{RECALL_LOSS}@{at}"] = recalls[0] - recalls[1]
    return result
