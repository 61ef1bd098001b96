"""The barrier of all ranks and its collectives."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from ret_lightning.distributed.barrier import Barrier
from tests.support.ranks import on_ranks


def synchronise(number: int, folder: Path) -> dict:
    barrier = Barrier()
    arrived = folder / "arrived"
    if number == 2:
        time.sleep(0.3)
        arrived.touch()
    barrier.wait()
    return {
        "after": arrived.exists(),
        "text": barrier.broadcast(f"from {number}"),
        "sums": barrier.all_reduce_sum([number, 1, 2**40]),
        "none": barrier.all_reduce_sum([]),
    }


def test_barrier_waits_and_shares_values(tmp_path: Path) -> None:
    for of_rank in on_ranks(partial(synchronise, folder=tmp_path), 3, tmp_path):
        assert of_rank == {"after": True, "text": "from 0", "sums": [3, 3, 3 * 2**40], "none": []}


def test_barrier_of_one_process_returns_at_once() -> None:
    barrier = Barrier()
    barrier.wait()
    assert barrier.broadcast("text") == "text"
    assert barrier.all_reduce_sum((1, 2)) == [1, 2]
