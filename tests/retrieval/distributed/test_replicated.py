"""Search with an index that is replicated on every rank."""

from __future__ import annotations

import pytest
import torch

from ret_lightning.retrieval import FaissIndex, search_replicated
from ret_lightning.retrieval.distributed import replicated
from ret_lightning.retrieval.distributed.replicated import gather_by_position, rank_slice
from tests.support.random_pools import clustered


def test_replicated_search_keeps_short_flags() -> None:
    queries, passages = clustered(300, 30, k=2)
    index = FaissIndex(hits=1, candidates=12)  # one vector of four hits per query: fewer than ten passages
    index.build(passages)
    ranking = search_replicated(index, queries, 10, torch.device("cpu"))
    assert ranking.short.all()
    assert (ranking.rows >= 0).all()
    assert (search_replicated(index, queries, 10, torch.device("cpu"), fallback=False).rows < 0).any()


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 12, 100])
def test_rank_slices_are_even_and_cover_all_items(ranks: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicated, "world_size", lambda: ranks)
    parts = []
    for rank in range(ranks):
        monkeypatch.setattr(replicated, "rank", lambda rank=rank: rank)
        parts.append(list(range(count))[rank_slice(count)])
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_gather_by_position_on_one_rank() -> None:
    rows = torch.randn(4, 2, 3)
    assert gather_by_position(rows, torch.arange(4), 4, torch.device("cpu")) is rows
    positions = torch.tensor([2, 0, 3, 1])
    gathered = gather_by_position(rows, positions, 4, torch.device("cpu"))
    assert all(torch.equal(gathered[place], row) for place, row in zip(positions.tolist(), rows, strict=True))
