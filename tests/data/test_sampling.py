"""Which rows go where: every row once over all ranks, and the same global batches whatever their number."""

from __future__ import annotations

import pytest

from ret_lightning.data.sampling import Draw, GlobalBatches, RankRows


def epoch(rows: int, batch: int, world: int, epoch: int = 0, seed: int = 0) -> list[list[list[Draw]]]:
    samplers = [GlobalBatches(rows, batch, seed, rank, world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 7, 24, 25, 26, 31])
def test_every_row_once_and_as_many_batches_on_each_rank(rows: int, world: int) -> None:
    ranks = epoch(rows, 4, world)
    assert len({len(batches) for batches in ranks}) == 1
    assert [len(GlobalBatches(rows, 4, 0, r, world)) for r in range(world)] == [len(b) for b in ranks]
    assert all(len(batch) > 0 for batches in ranks for batch in batches)
    seen = sorted(draw.row for batches in ranks for batch in batches for draw in batch)
    rest = rows % (4 * world)
    dropped = rest if rest < world else 0
    assert len(seen) == rows - dropped
    assert len(set(seen)) == len(seen)


def test_global_batches_do_not_depend_on_the_number_of_ranks() -> None:
    one = epoch(52, 12, 1)[0]
    for world, batch in ((2, 6), (3, 4), (4, 3)):
        ranks = epoch(52, batch, world)
        together = [[key for rank in ranks for key in rank[index]] for index in range(len(one))]
        assert together == one


def test_the_order_follows_seed_and_epoch() -> None:
    first = epoch(50, 10, 1)
    assert epoch(50, 10, 1) == first
    assert [d.row for b in epoch(50, 10, 1, epoch=1)[0] for d in b] != [d.row for b in first[0] for d in b]
    assert epoch(50, 10, 1, seed=1) != first
    assert {d.epoch for b in epoch(50, 10, 1, epoch=3)[0] for d in b} == {3}
    plain = GlobalBatches(5, 2, shuffle=False)
    assert list(plain) == [[(0, 0, 0), (0, 1, 0)], [(0, 2, 0), (0, 3, 0)], [(0, 4, 0)]]


def test_evaluation_rows_are_dealt_out_once() -> None:
    for rows in (0, 1, 5, 12):
        for world in (1, 2, 5):
            parts = [list(RankRows(rows, rank, world)) for rank in range(world)]
            assert sorted(row for part in parts for row in part) == list(range(rows))
            assert [len(RankRows(rows, rank, world)) for rank in range(world)] == [len(part) for part in parts]
