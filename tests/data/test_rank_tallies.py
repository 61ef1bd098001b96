"""Bad rows counted over ranks."""

from __future__ import annotations

from pathlib import Path

import torch

from ret_lightning.data.bad_rows import BadRow, Tally
from ret_lightning.data.rank_tallies import tally_over_ranks
from ret_lightning.data.readers.source_location import Place
from ret_lightning.distributed.collectives import world_size
from tests.support.ranks import on_ranks


def test_ranks_count_together(tmp_path: Path) -> None:
    found = on_ranks(_count, 2, tmp_path)
    assert found[0] == found[1] == (20, {"bad_json": 4, "missing_image": 1}, ["0", "1"])


def _count(rank: int) -> tuple[int, dict[str, int], list[str]]:
    assert world_size() == 2
    tally = Tally(10)
    for _ in range(2):
        tally.add(BadRow("bad_json", str(rank), Place(Path("x"), 1)))
    if rank:
        tally.add(BadRow("missing_image", "gone", Place(Path("x"), 1)))
    whole = tally_over_ranks(tally, torch.device("cpu"))
    assert tally_over_ranks(Tally(3 + rank), torch.device("cpu")) == Tally(7)
    return whole.rows, dict(whole.kinds), [row.text for row in whole.first["bad_json"]]
