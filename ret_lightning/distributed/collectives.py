"""Collectives that gather rows from every rank and propagate gradients back to the rank that owns each row.

Shapes: W ranks, n rows on this rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process; 0 without torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_sizes(sizes: Sequence[int], device: torch.device) -> list[list[int]]:
    """Gather a few integers from every rank in one collective.

    Args:
        sizes: Integers of this rank; every rank must pass the same number of integers.
        device: Device that the collective runs on.

    Returns:
        W lists, the integers of each rank in rank order.
    """
    if world_size() == 1:
        return [list(sizes)]
    own = torch.tensor(sizes, dtype=torch.int64, device=device)
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return torch.stack(parts).tolist()


def row_counts(rows: Tensor) -> list[int]:
    """Return the number of rows on each rank, which differs if the last batch of an epoch is uneven."""
    return [count for (count,) in gather_sizes([len(rows)], rows.device)]


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Gather the rows of all ranks in rank order.

    Args:
        rows: (n, ...) rows of this rank. n may differ between ranks, the other dimensions may not.
        counts: W integers, n of each rank.

    Returns:
        (sum(counts), ...). The gradient with respect to `rows` is the sum of the gradients of all ranks.
    """
    return rows if world_size() == 1 else _GatherRows.apply(rows, counts)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # all_reduce is in-place and needs dense memory; the gradient of an expanded tensor, for example, is not dense.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        start = sum(ctx.counts[: rank()])
        return total[start : start + ctx.counts[rank()]], None
