"""Tests of the batch samplers: each row once per epoch, and global batches that do not depend on the number of ranks."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ret_lightning.data.epoch_position import Position, Span
from ret_lightning.data.sampling.batch_samplers import (
    BatchCutter,
    GlobalBatches,
    SampledRow,
    distribute_batches,
    fill_idle_rank,
    split_evaluation_batches,
)
from ret_lightning.data.sampling.mixture import Mixture, RowMixture
from ret_lightning.data.sampling.subset_index import RowSubsets


def epoch(rows: int, batch: int, world: int, epoch: int = 0, seed: int = 0) -> list[list[list[SampledRow]]]:
    samplers = [GlobalBatches(rows, batch, seed, rank, world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 7, 24, 25, 26, 31])
def test_epoch_samples_each_row_once_with_equal_batch_counts(rows: int, world: int) -> None:
    ranks = epoch(rows, 4, world)
    assert len({len(batches) for batches in ranks}) == 1
    assert [len(GlobalBatches(rows, 4, 0, r, world)) for r in range(world)] == [len(b) for b in ranks]
    assert all(len(batch) > 0 for batches in ranks for batch in batches)
    seen = sorted(sample.row for batches in ranks for batch in batches for sample in batch)
    rest = rows % (4 * world)
    dropped = rest if rest < world else 0
    assert len(seen) == rows - dropped
    assert len(set(seen)) == len(seen)


def test_global_batches_do_not_depend_on_world_size() -> None:
    one = epoch(52, 12, 1)[0]
    for world, batch in ((2, 6), (3, 4), (4, 3)):
        ranks = epoch(52, batch, world)
        together = [[key for rank in ranks for key in rank[index]] for index in range(len(one))]
        assert together == one


def test_order_depends_on_seed_and_epoch() -> None:
    first = epoch(50, 10, 1)
    assert epoch(50, 10, 1) == first
    assert [d.row for b in epoch(50, 10, 1, epoch=1)[0] for d in b] != [d.row for b in first[0] for d in b]
    assert epoch(50, 10, 1, seed=1) != first
    assert {d.epoch for b in epoch(50, 10, 1, epoch=3)[0] for d in b} == {3}
    plain = GlobalBatches(5, 2, shuffle=False)
    assert list(plain) == [[(0, 0, 0), (0, 1, 0)], [(0, 2, 0), (0, 3, 0)], [(0, 4, 0)]]


def test_evaluation_batches_are_the_same_on_any_world_size() -> None:
    sizes = (0, 1, 5, 12)
    single = distribute_batches(sizes, 4)
    assert single == [[], [[0]], [[0, 1, 2, 3], [4]], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]]
    for world in (2, 5):
        ranks = [distribute_batches(sizes, 4, rank, world) for rank in range(world)]
        for file, whole in enumerate(single):
            assert sorted(batch for own in ranks for batch in own[file]) == whole
    # Files of one batch go to different ranks.
    assert [[len(file) for file in distribute_batches([3] * 4, 4, rank, 2)] for rank in (0, 1)] == [
        [1, 0, 1, 0],
        [0, 1, 0, 1],
    ]


def test_remaining_rows_keep_their_batches() -> None:
    assert split_evaluation_batches([2, 3, 8, 9, 10, 15], 4) == [[2, 3], [8, 9, 10], [15]]


def test_rank_without_batches_gets_first_row() -> None:
    assert fill_idle_rank([[], [], []]) == [[[0]], [], []]
    assert fill_idle_rank([[], [[3]]]) == [[], [[3]]]


def test_order_is_numpy_permutation() -> None:
    order = np.random.default_rng((3, 2)).permutation(25).tolist()
    sampler = GlobalBatches(25, 10, seed=3)
    sampler.set_epoch(2)
    assert [[sample.row for sample in batch] for batch in sampler] == [order[:10], order[10:20], order[20:]]


CODES = np.array([0, 1, 2, 1] * 30, np.uint16)
SUBSETS = RowSubsets(("wit", "okvqa", "evqa"), CODES)


def mixed_samplers(
    factors: dict[str, float], world: int, one_subset: bool = False, seed: int = 0, limit: int | None = None
):
    mixture = RowMixture(SUBSETS, Mixture(factors), limit)
    return [GlobalBatches(120, 7, seed, rank, world, mixture=mixture, one_subset=one_subset) for rank in range(world)]


@pytest.mark.parametrize("one_subset", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("factors", [{}, {"wit": 2.5, "okvqa": 0.3}, {"evqa": 9, "wit": 0}])
def test_mixture_counts_over_ranks_and_epochs(factors: dict[str, float], world: int, one_subset: bool) -> None:
    samplers = mixed_samplers(factors, world, one_subset)
    for epoch in range(3):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        ranks = [list(sampler) for sampler in samplers]
        assert [len(batches) for batches in ranks] == [len(sampler) for sampler in samplers]
        counts = Counter(sample.row for batches in ranks for batch in batches for sample in batch)
        dropped = 0
        for code, name in enumerate(SUBSETS.names):
            rows, factor = np.flatnonzero(code == CODES).tolist(), factors.get(name, 1.0)
            repeats = [counts[row] for row in rows]
            assert max(repeats) <= math.ceil(factor)
            dropped += math.floor(factor) * len(rows) + round(factor % 1 * len(rows)) - sum(repeats)
        assert 0 <= dropped < world * (3 if one_subset else 1)
        if one_subset:
            for index in range(len(ranks[0])):
                assert len({CODES[sample.row] for batches in ranks for sample in batches[index]}) == 1


@pytest.mark.parametrize("one_subset", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("factors", [None, {"wit": 2.5, "evqa": 9}])
def test_resume_with_same_batch_size_continues_epoch(factors, world: int, one_subset: bool) -> None:
    for seed in (0, 4):
        for rank in range(world):
            if factors is None:
                sampler = GlobalBatches(115, 7, seed, rank, world)
            else:
                sampler = mixed_samplers(factors, world, one_subset, seed)[rank]
            sampler.set_epoch(1)
            whole = list(sampler)
            assert len(whole) == len(sampler)
            for served in (1, 3, len(whole) - 1, len(whole)):
                sampler.resume(Position(1, (Span(world, 7, served),)))
                assert len(sampler) == len(whole)
                assert list(sampler) == whole[served:]
            sampler.set_epoch(2)
            assert len(list(sampler)) == len(sampler) == len(whole)


def test_mixture_does_not_depend_on_world_size() -> None:
    one = list(GlobalBatches(120, 12, mixture=RowMixture(SUBSETS, Mixture({"evqa": 3}))))
    parts = [list(GlobalBatches(120, 4, 0, r, 3, mixture=RowMixture(SUBSETS, Mixture({"evqa": 3})))) for r in range(3)]
    assert [[sample for part in parts for sample in part[index]] for index in range(len(one))] == one


def test_fraction_samples_new_rows_per_epoch() -> None:
    sampler = mixed_samplers({"okvqa": 0.5}, 1)[0]
    halves = set()
    for epoch in range(5):
        sampler.set_epoch(epoch)
        halves.add(frozenset(sample.row for batch in sampler for sample in batch if CODES[sample.row] == 1))
    assert {len(half) for half in halves} == {30}
    assert len(halves) == 5


def test_limit_counts_rows_used_by_mixture() -> None:
    sampler = mixed_samplers({"wit": 0, "okvqa": 2}, 1, limit=9)[0]
    used = [row for row in range(120) if CODES[row] != 0][:9]
    assert Counter(d.row for b in sampler for d in b) == Counter({row: 2 if CODES[row] == 1 else 1 for row in used})


@given(rows=st.lists(st.integers(0, 12), max_size=80), size=st.integers(1, 9))
def test_cutter_separates_copies_of_a_row(rows: list[int], size: int) -> None:
    cutter = BatchCutter(size, row_of=lambda sample: sample[1])
    samples = list(enumerate(rows))
    batches = [batch for sample in samples if (batch := cutter.add(sample))]
    before_rest = len(batches)
    batches += cutter.rest()
    assert sorted(sample for batch in batches for sample in batch) == samples
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert all(0 < len(batch) <= size for batch in batches)
    for batch in batches[:before_rest]:
        assert len({row for _, row in batch}) == len(batch)
    left = Counter(row for batch in batches[before_rest:] for _, row in batch)
    if left and max(left.values()) == 1:
        assert all(len({row for _, row in batch}) == len(batch) for batch in batches)


def test_cutter_bounds_deferred_samples() -> None:
    cutter = BatchCutter(4, row_of=lambda sample: 0)
    batches = [batch for sample in range(1000) if (batch := cutter.add(sample))]
    assert len(batches) > 200
    assert sum(map(len, [*batches, *cutter.rest()])) == 1000
