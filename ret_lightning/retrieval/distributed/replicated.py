"""Search over several ranks with an index that each of them has whole: each searches for its share of the queries."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ret_lightning.distributed.collectives import gather_rows, rank, row_counts, world_size
from ret_lightning.retrieval.indexes.base import Index
from ret_lightning.retrieval.ranking import Ranking

# Rows at a time that go from one rank to all others: at 32 vectors of 128 in half precision, 8 MiB.
ROWS_PER_MESSAGE = 1024


def search_replicated(
    index: Index, queries: Tensor, top_k: int, device: torch.device, fallback: bool = True
) -> Ranking:
    """Ranks the pool for all queries, of which each rank searches for a stretch; called on all of them together.

    Args:
        index: built, of the same pool in the same way on every rank.
        queries: (Nq, Lq, d), the same on all ranks.
        top_k: passages a query.
        device: where the ranks meet: a GPU for NCCL.
        fallback: False turns the exact fallback of an approximate index off, see `Index.search_candidates`.

    Returns:
        The (Nq, top_k) ranking of all queries, on the CPU, the same on every rank.
    """
    search = index.search if fallback else index.search_candidates
    found = search(queries[rank_slice(len(queries))], top_k)
    counts = row_counts(found.rows.to(device))
    short = None if found.short is None else gather_rows(found.short.long().to(device), counts).cpu().bool()
    return Ranking(*(gather_rows(part.to(device), counts).cpu() for part in (found.rows, found.scores)), short)


def rank_slice(count: int) -> slice:
    """This rank's stretch of so many items; stretches differ by one item at most, and follow each other as ranks do."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def gather_by_position(rows: Tensor, places: Tensor, count: int, device: torch.device) -> Tensor:
    """The rows of all ranks, in one tensor on each; nothing of that size is ever there twice.

    Args:
        rows: (n, k, d), this rank's, on the CPU; n may be 0, the rest is the same on all ranks.
        places: (n,) int64, where these go; every place below `count` on one rank.
        count: rows of all ranks together.
        device: where the ranks meet.

    Returns:
        (count, k, d) on the CPU; `rows` itself where there is one rank and they are in order already.
    """
    if world_size() == 1 and torch.equal(places, torch.arange(count)):
        return rows
    whole = rows.new_empty(count, *rows.shape[1:])
    if world_size() == 1:
        whole[places] = rows
        return whole
    for source, held in enumerate(row_counts(places.to(device))):
        for start in range(0, held, ROWS_PER_MESSAGE):
            piece = slice(start, min(start + ROWS_PER_MESSAGE, held))
            if source == rank():
                own = [places[piece].to(device), rows[piece].to(device)]
            else:
                size = piece.stop - piece.start
                own = [
                    torch.empty(size, dtype=places.dtype, device=device),
                    torch.empty(size, *rows.shape[1:], dtype=rows.dtype, device=device),
                ]
            for message in own:
                dist.broadcast(message, source)
            whole[own[0].cpu()] = own[1].cpu()
    return whole
