"""Search over ranks that each hold the whole index."""

from __future__ import annotations

import pytest
import torch

from ret_lightning.retrieval import FaissIndex, search_replicated
from ret_lightning.retrieval.distributed import replicated
from ret_lightning.retrieval.distributed.replicated import gather_by_position, rank_slice
from tests.support.random_pools import clustered


def test_replicated_search_keeps_the_count() -> None:
    queries, passages = clustered(300, 30, k=2)
    index = FaissIndex(hits=1, candidates=12)  # one vector of four hits per query: fewer than ten passages
    index.build(passages)
    ranking = search_replicated(index, queries, 10, torch.device("cpu"))
    assert ranking.short.all()
    assert (ranking.rows >= 0).all()
    assert (search_replicated(index, queries, 10, torch.device("cpu"), fallback=False).rows < 0).any()


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 12, 100])
def test_shares_of_the_ranks_are_even_and_cover_every_item_once(
    ranks: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicated, "world_size", lambda: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(replicated, "rank", lambda rank=rank: rank)
        shares.append(list(range(count))[rank_slice(count)])
    assert [item for share in shares for item in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_rank_gathers_its_rows_by_place() -> None:
    rows = torch.randn(4, 2, 3)
    assert gather_by_position(rows, torch.arange(4), 4, torch.device("cpu")) is rows
    places = torch.tensor([2, 0, 3, 1])
    gathered = gather_by_position(rows, places, 4, torch.device("cpu"))
    assert all(torch.equal(gathered[place], row) for place, row in zip(places.tolist(), rows, strict=True))
