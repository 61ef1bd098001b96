"""Reduction of bad-row counts over ranks."""

from __future__ import annotations

from pathlib import Path

import torch

from ret_lightning.data.bad_rows import BadRow, Tally
from ret_lightning.data.rank_tallies import reduce_tally
from ret_lightning.data.readers.source_location import SourceLocation
from ret_lightning.distributed.collectives import world_size
from tests.support.ranks import on_ranks


def test_tallies_of_ranks_are_added(tmp_path: Path) -> None:
    found = on_ranks(_count, 2, tmp_path)
    assert found[0] == found[1] == (20, {"bad_json": 4, "missing_image": 1}, ["0", "1"])


def _count(rank: int) -> tuple[int, dict[str, int], list[str]]:
    assert world_size() == 2
    tally = Tally(10)
    for _ in range(2):
        tally.add(BadRow("bad_json", str(rank), SourceLocation(Path("x"), 1)))
    if rank:
        tally.add(BadRow("missing_image", "gone", SourceLocation(Path("x"), 1)))
    whole = reduce_tally(tally, torch.device("cpu"))
    assert reduce_tally(Tally(3 + rank), torch.device("cpu")) == Tally(7)
    return whole.rows, dict(whole.kinds), [row.text for row in whole.first["bad_json"]]
