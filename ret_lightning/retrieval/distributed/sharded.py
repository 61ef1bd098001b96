"""Distributed exact search with a sharded corpus: each rank holds a part of the passages and no rank holds all of them.

Shapes: n passages on this rank, Nq queries of Lq vectors of width d, K results per query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ret_lightning.distributed.collectives import gather_rows, row_counts
from ret_lightning.retrieval.indexes.base import Index
from ret_lightning.retrieval.ranking import Ranking, top_columns
from ret_lightning.retrieval.store.embeddings import Embeddings


def search_sharded(
    index: Index, shard: Embeddings, positions: Tensor, queries: Tensor, top_k: int, device: torch.device
) -> Ranking:
    """Rank all queries against the passages of this rank and merge the results of all ranks.

    This is a collective operation: call it on all ranks.

    Args:
        index: an index whose class is `shardable`; it is built from the passages of this rank.
        shard: the n passages of this rank; n may be 0.
        positions: (n,) int64 positions of these passages in the whole corpus, ascending. No position occurs on two ranks.
        queries: (Nq, Lq, d) tensor, identical on all ranks.
        top_k: number of passages per query.
        device: device for the collective communication, a GPU for NCCL.

    Returns:
        The (Nq, top_k) ranking of the whole corpus on the CPU, identical on every rank and equal to that of a single index.
    """
    rows = torch.full((len(queries), top_k), -1, dtype=torch.int64)
    scores = torch.full((len(queries), top_k), -torch.inf)
    if len(shard):
        index.build(shard)
        found = index.search(queries, top_k)
        rows = torch.where(found.rows >= 0, positions[found.rows.clamp(min=0)], -1)
        scores = found.scores
    # Concatenated by rank: (Nq, ranks * top_k).
    rows, scores = (_gather_columns(part, device) for part in (rows, scores))
    # Sorted by position, so that equal scores rank in corpus order; missing entries come last.
    order = torch.where(rows >= 0, rows, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
    rows, scores = rows.gather(1, order), scores.gather(1, order)
    best = top_columns(scores, min(top_k, scores.shape[1]))
    return Ranking(rows.gather(1, best), scores.gather(1, best))


def _gather_columns(part: Tensor, device: torch.device) -> Tensor:
    columns = part.T.contiguous().to(device)
    return gather_rows(columns, row_counts(columns)).T.cpu()
