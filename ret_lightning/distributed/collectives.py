"""Collects rows from every rank; gradients flow back to the rank that owns a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """The number of ranks; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 where torch.distributed is not in use."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_sizes(sizes: Sequence[int], device: torch.device) -> list[list[int]]:
    """Collect a few integers from every rank, in one collective.

    Args:
        sizes: this rank's; every rank passes the same number of them.
        device: that the collective runs on.

    Returns:
        Each rank's integers, in the order of the ranks.
    """
    if world_size() == 1:
        return [list(sizes)]
    own = torch.tensor(sizes, dtype=torch.int64, device=device)
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return torch.stack(parts).tolist()


def row_counts(rows: Tensor) -> list[int]:
    """Return how many rows each rank holds (the last batch of an epoch may be uneven)."""
    return [count for (count,) in gather_sizes([len(rows)], rows.device)]


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Collect the rows of all ranks, in the order of the ranks.

    Args:
        rows: (n, ...), n may differ between ranks, the rest may not.
        counts: n of each rank.

    Returns:
        (sum of counts, ...). Its gradient, summed over all ranks, arrives at `rows`.
    """
    return rows if world_size() == 1 else _GatherRows.apply(rows, counts)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        # all_reduce works in place and needs dense memory; the gradient of an expanded tensor, for one, is not dense.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        start = sum(ctx.counts[: rank()])
        return total[start : start + ctx.counts[rank()]], None
