"""Gathered rows and their gradients on three ranks, compared with one process that holds all rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ret_lightning.distributed.collectives import gather_rows, gather_sizes, rank, row_counts, world_size
from tests.support.ranks import on_ranks

COUNTS = [3, 0, 2]  # rows of each rank


def rows_of(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(COUNTS[number], 2, 4, generator=generator, dtype=torch.float64)


def loss(rows: torch.Tensor, number: int) -> torch.Tensor:
    """Return a function of all rows that differs between ranks."""
    weights = torch.arange(rows.numel(), dtype=rows.dtype).view_as(rows)
    return ((number + 1) * weights * rows**2).sum()


def gather(number: int) -> dict:
    own = rows_of(number).requires_grad_()
    gathered = gather_rows(own, row_counts(own))
    loss(gathered, number).backward()
    still = gather_rows(torch.full((1,), number), [1, 1, 1])
    expanded, strided = rows_of(number).requires_grad_(), rows_of(number).requires_grad_()
    gather_rows(expanded, COUNTS).sum().backward()  # the gradient is an expanded tensor, which is not dense
    whole = gather_rows(strided, COUNTS)
    weights = torch.arange(whole.numel(), dtype=whole.dtype).view_as(whole)
    if number == 1:  # the strides of the gradient differ from those on the other ranks
        (whole.transpose(0, 1) * weights.transpose(0, 1).contiguous()).sum().backward()
    else:
        (whole * weights).sum().backward()
    return {
        "rank and world size": (rank(), world_size()),
        "sizes": gather_sizes([number, 10 * number], torch.device("cpu")),
        "gathered": gathered.detach(),
        "gradient": own.grad,
        "still": still.tolist(),
        "ones": expanded.grad,
        "weights": strided.grad,
    }


def test_ranks_gather_rows_and_gradients(tmp_path: Path) -> None:
    found = on_ranks(gather, 3, tmp_path)
    whole = torch.cat([rows_of(number) for number in range(3)]).requires_grad_()
    sum(loss(whole, number) for number in range(3)).backward()
    for number, of_rank in enumerate(found):
        start = sum(COUNTS[:number])
        assert of_rank["rank and world size"] == (number, 3)
        assert of_rank["sizes"] == [[0, 0], [1, 10], [2, 20]]
        assert torch.equal(of_rank["gathered"], whole.detach())
        torch.testing.assert_close(of_rank["gradient"], whole.grad[start : start + COUNTS[number]])
        assert of_rank["still"] == [0, 1, 2]
        assert torch.equal(of_rank["ones"], torch.full((COUNTS[number], 2, 4), 3.0, dtype=torch.float64))
        weights = torch.arange(whole.numel(), dtype=torch.float64).view_as(whole)
        assert torch.equal(of_rank["weights"], 3 * weights[start : start + COUNTS[number]])


@pytest.mark.parametrize("count", [0, 4])
def test_gather_of_one_process_returns_its_rows(count: int) -> None:
    rows = torch.randn(count, 3)
    assert (rank(), world_size()) == (0, 1)
    assert row_counts(rows) == [count]
    assert gather_rows(rows, [count]) is rows
    assert gather_sizes([1, 2], rows.device) == [[1, 2]]
