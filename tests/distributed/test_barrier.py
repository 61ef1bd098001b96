"""The barrier of all ranks, and what they exchange there."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from ret_lightning.distributed.barrier import Meeting
from tests.support.ranks import on_ranks


def meet(number: int, folder: Path) -> dict:
    meeting = Meeting()
    arrived = folder / "arrived"
    if number == 2:
        time.sleep(0.3)
        arrived.touch()
    meeting.wait()
    return {
        "after": arrived.exists(),
        "text": meeting.from_first(f"from {number}"),
        "sums": meeting.sums([number, 1, 2**40]),
        "none": meeting.sums([]),
    }


def test_ranks_wait_and_agree(tmp_path: Path) -> None:
    for of_rank in on_ranks(partial(meet, folder=tmp_path), 3, tmp_path):
        assert of_rank == {"after": True, "text": "from 0", "sums": [3, 3, 3 * 2**40], "none": []}


def test_one_process_waits_for_nobody() -> None:
    meeting = Meeting()
    meeting.wait()
    assert meeting.from_first("text") == "text"
    assert meeting.sums((1, 2)) == [1, 2]
