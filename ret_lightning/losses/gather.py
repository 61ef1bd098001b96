"""Collects rows from every rank; gradients flow back to the rank that owns a row."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """The number of ranks; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 where torch.distributed is not in use."""
    return dist.get_rank() if world_size() > 1 else 0


def row_counts(rows: Tensor) -> list[int]:
    """How many rows each rank holds (the last batch of an epoch may be uneven)."""
    if world_size() == 1:
        return [len(rows)]
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    return [int(count) for count in counts]


def gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """The rows of all ranks, in the order of the ranks.

    Args:
        rows: (n, ...), n may differ between ranks, the rest may not.
        counts: what `row_counts(rows)` says.

    Returns:
        (sum of counts, ...). Its gradient, summed over all ranks, arrives at `rows`.
    """
    return rows if world_size() == 1 else _GatherRows.apply(rows, counts)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, counts: list[int]) -> Tensor:
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
