"""Exact search over several ranks: each holds a share of the passages, and nobody holds the whole pool."""

from __future__ import annotations

import torch
from torch import Tensor

from ret_lightning.distributed.collectives import gather_rows, row_counts
from ret_lightning.retrieval.indexes.base import Index
from ret_lightning.retrieval.ranking import Ranking, top_columns
from ret_lightning.retrieval.store.embeddings import Embeddings


def search_sharded(
    index: Index, shares: Embeddings, positions: Tensor, queries: Tensor, top_k: int, device: torch.device
) -> Ranking:
    """Ranks all queries against this rank's passages, and merges the best of all ranks; called on all of them together.

    Args:
        index: a `shardable` one; it is built of this rank's passages.
        shares: this rank's passages, perhaps none.
        positions: (n,) int64, where these stand in the whole pool, ascending; no position on two ranks.
        queries: (Nq, Lq, d), the same on all ranks.
        top_k: passages a query.
        device: where the ranks meet: a GPU for NCCL.

    Returns:
        The ranking of the whole pool, as one index of it returns it, on the CPU, the same on every rank.
    """
    rows = torch.full((len(queries), top_k), -1, dtype=torch.int64)
    scores = torch.full((len(queries), top_k), -torch.inf)
    if len(shares):
        index.build(shares)
        found = index.search(queries, top_k)
        rows = torch.where(found.rows >= 0, positions[found.rows.clamp(min=0)], -1)
        scores = found.scores
    # Side by side, a rank's after another's: (Nq, ranks * top_k).
    rows, scores = (_gather_columns(part, device) for part in (rows, scores))
    # In the order of the pool, so that of equal scores the earlier passage comes first; what is missing comes last.
    order = torch.where(rows >= 0, rows, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
    rows, scores = rows.gather(1, order), scores.gather(1, order)
    best = top_columns(scores, min(top_k, scores.shape[1]))
    return Ranking(rows.gather(1, best), scores.gather(1, best))


def _gather_columns(part: Tensor, device: torch.device) -> Tensor:
    columns = part.T.contiguous().to(device)
    return gather_rows(columns, row_counts(columns)).T.cpu()
