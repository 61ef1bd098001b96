"""Distributed search with a replicated index: every rank holds the whole index and searches for a part of the queries.

Shapes: Nq queries of Lq vectors, K results per query, k vectors of width d per row.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ret_lightning.distributed.collectives import gather_rows, rank, row_counts, world_size
from ret_lightning.retrieval.indexes.base import Index
from ret_lightning.retrieval.ranking import Ranking

# Rows per broadcast: 8 MiB for 32 float16 vectors of width 128.
ROWS_PER_MESSAGE = 1024


def search_replicated(
    index: Index, queries: Tensor, top_k: int, device: torch.device, fallback: bool = True
) -> Ranking:
    """Rank the corpus for all queries, each rank searching for a contiguous part of them.

    This is a collective operation: call it on all ranks.

    Args:
        index: an index that every rank built from the same passages with the same settings.
        queries: (Nq, Lq, d) tensor, identical on all ranks.
        top_k: number of passages per query.
        device: device for the collective communication, a GPU for NCCL.
        fallback: whether an approximate index ranks queries with too few candidates exactly; see `Index.search_candidates`.

    Returns:
        The (Nq, top_k) ranking of all queries on the CPU, identical on every rank.
    """
    search = index.search if fallback else index.search_candidates
    found = search(queries[rank_slice(len(queries))], top_k)
    counts = row_counts(found.rows.to(device))
    short = None if found.short is None else gather_rows(found.short.long().to(device), counts).cpu().bool()
    rows, scores = (gather_rows(part.to(device), counts).cpu() for part in (found.rows, found.scores))
    return Ranking(rows, scores, short)


def rank_slice(count: int) -> slice:
    """Return the slice of `count` items that belongs to this rank.

    Slices are contiguous, ordered by rank, and differ in size by at most one item.
    """
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def gather_by_position(rows: Tensor, positions: Tensor, count: int, device: torch.device) -> Tensor:
    """Gather the rows of all ranks into one tensor on each rank.

    Rows are broadcast in blocks, so that a rank never holds two copies of the full tensor.

    Args:
        rows: (n, k, d) tensor of this rank on the CPU; n may be 0. k, d and the dtype are identical on all ranks.
        positions: (n,) int64 row indices in the result. Each index below `count` occurs on exactly one rank.
        count: total number of rows on all ranks.
        device: device for the collective communication.

    Returns:
        (count, k, d) tensor on the CPU. With one rank and rows already in order, `rows` itself.
    """
    if world_size() == 1 and torch.equal(positions, torch.arange(count)):
        return rows
    gathered = rows.new_empty(count, *rows.shape[1:])
    if world_size() == 1:
        gathered[positions] = rows
        return gathered
    for source, count_of_source in enumerate(row_counts(positions.to(device))):
        for start in range(0, count_of_source, ROWS_PER_MESSAGE):
            block = slice(start, min(start + ROWS_PER_MESSAGE, count_of_source))
            if source == rank():
                message = [positions[block].to(device), rows[block].to(device)]
            else:
                size = block.stop - block.start
                message = [
                    torch.empty(size, dtype=positions.dtype, device=device),
                    torch.empty(size, *rows.shape[1:], dtype=rows.dtype, device=device),
                ]
            for tensor in message:
                dist.broadcast(tensor, source)
            gathered[message[0].cpu()] = message[1].cpu()
    return gathered
