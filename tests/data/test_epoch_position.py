"""Epochs resumed with another global batch size: every sample is served once, and an unchanged size keeps the order."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ret_lightning.data.epoch_position import Position, Span
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers import row_files
from ret_lightning.data.readers.row_files import RowFiles
from ret_lightning.data.sampling.batch_samplers import EpochBatches, GlobalBatches, SampledRow
from ret_lightning.data.sampling.mixture import Mixture, RowMixture
from ret_lightning.data.sampling.streaming import RowStream, StreamedBatches
from ret_lightning.data.sampling.subset_index import RowSubsets
from tests.support.row_files import write

NAMES = ("wit", "okvqa", "evqa")
EPOCH = 2
START = Position()
FACTORS = ({}, {"okvqa": 2.5, "wit": 0.5}, {"okvqa": 9, "evqa": 0})

# Builds the sampler of a rank from batch size, rank and number of ranks.
Make = Callable[[int, int, int], EpochBatches]


def indexed(rows: int, factors: dict[str, float], one_subset: bool, seed: int = 3) -> Make:
    codes = np.arange(rows, dtype=np.uint16) % 3
    codes[0::4] = 1
    mixture = RowMixture(RowSubsets(NAMES, codes), Mixture(factors)) if factors or one_subset else None
    return lambda batch, rank, ranks: GlobalBatches(
        rows, batch, seed, rank, ranks, mixture=mixture, one_subset=one_subset
    )


def streamed(files: RowFiles, factors: dict[str, float], one_subset: bool, seed: int = 3) -> Make:
    stream = RowStream(files, SubsetNames(NAMES), Mixture(factors), 16, seed=seed)
    return lambda batch, rank, ranks: StreamedBatches(stream, batch, rank, ranks, one_subset)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RowFiles]:
    folder = tmp_path_factory.mktemp("rows")
    rows = [{"data_id": f"{NAMES[i % 3]}_{i}"} for i in range(200)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_files, "MIN_SPAN_BYTES", 500)
        files = RowFiles([write(folder / "a.jsonl", rows[:130]), write(folder / "b.jsonl", rows[130:])])
        yield files


def serve(make: Make, ranks: int, batch: int, position: Position = START) -> list[list[SampledRow]]:
    """Return the remaining global batches of the epoch, each joined from the shares of the ranks."""
    samplers = [make(batch, rank, ranks) for rank in range(ranks)]
    for sampler in samplers:
        sampler.set_epoch(EPOCH)
        sampler.resume(position)
    shares = [list(sampler) for sampler in samplers]
    assert len({len(batches) for batches in shares}) == 1
    assert all(batch for batches in shares for batch in batches)
    if isinstance(samplers[0], GlobalBatches):
        assert len(samplers[0]) == position.batches + len(shares[0])
    return [[sample for share in together for sample in share] for together in zip(*shares, strict=True)]


def resumed(make: Make, legs: list[tuple[int, int, int]], last: tuple[int, int]) -> list[list[SampledRow]]:
    """Return the global batches of an epoch: each leg (ranks, batch size, batches) serves some, `last` the remaining ones."""
    position, served = START, []
    for ranks, batch, count in legs:
        batches = serve(make, ranks, batch, position)[:count]
        served += batches
        position = position.advance(EPOCH, position.batches + len(batches), ranks, batch)
        position = Position.from_state(json.loads(json.dumps(position.state())), 0, 0)
        assert position.batches == len(served)
    return served + serve(make, *last, position)


def identities(batches: list[list[SampledRow]]) -> Counter[tuple[int, ...]]:
    return Counter(sample.identity() for batch in batches for sample in batch)


def check(make: Make, one_subset: bool, legs: list[tuple[int, int, int]], last: tuple[int, int], subset) -> None:
    whole = identities(serve(make, 1, 1))
    batches = resumed(make, legs, last)
    found = identities(batches)
    assert found <= whole
    assert (whole - found).total() < last[0] * (len(NAMES) if one_subset else 1)
    if one_subset:
        assert all(len({subset(sample) for sample in batch}) == 1 for batch in batches)
    if all(leg[:2] == last for leg in legs):
        assert batches == serve(make, *last)


sizes = st.tuples(st.integers(1, 4), st.integers(1, 9))
legs = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 12)), max_size=3)


@given(st.integers(1, 150), st.sampled_from(FACTORS), st.booleans(), legs, sizes)
@example(40, {}, False, [(2, 4, 3)], (1, 4))
@example(40, {}, False, [(1, 4, 3)], (2, 4))
@example(41, {}, False, [(1, 8, 5)], (2, 8))  # one row remains for two ranks
@example(120, {"okvqa": 2.5, "wit": 0.5}, True, [(2, 4, 3), (4, 4, 0), (1, 4, 5), (2, 4, 2)], (2, 4))
def test_indexed_rows_are_served_once(rows, factors, one_subset, legs, last) -> None:
    make = indexed(rows, factors, one_subset)
    codes = make(1, 0, 1).mixture.codes if one_subset else None
    check(make, one_subset, legs, last, lambda sample: codes[sample.row])


@settings(max_examples=40)
@given(st.sampled_from(FACTORS), st.booleans(), legs, sizes)
def test_streamed_rows_are_served_once(files, factors, one_subset, legs, last) -> None:
    make = streamed(files, factors, one_subset)
    check(make, one_subset, legs, last, lambda sample: make(1, 0, 1).stream.subset(sample.row))


@pytest.mark.parametrize("one_subset", [False, True])
@pytest.mark.parametrize("factors", FACTORS[:2], ids=["plain", "mixed"])
@pytest.mark.parametrize("reading", ["indexed", "streaming"])
def test_resize_at_epoch_start_keeps_order(files, reading, factors, one_subset) -> None:
    make = indexed(120, factors, one_subset) if reading == "indexed" else streamed(files, factors, one_subset)
    assert resumed(make, [(4, 2, 0)], (2, 3)) == serve(make, 2, 3)


def test_rows_dropped_before_resize_are_served() -> None:
    make = indexed(42, {}, True)
    dropping = serve(make, 5, 2)
    assert identities(dropping).total() < 42
    assert identities(resumed(make, [(5, 2, len(dropping))], (1, 3))).total() == 42


def test_epoch_after_resize_is_complete() -> None:
    sampler = GlobalBatches(50, 5)
    sampler.resume(Position(EPOCH, (Span(2, 5, 3),)))
    sampler.set_epoch(EPOCH)
    assert len(sampler) == 3 + 4
    assert sampler.has_mixed_batch_sizes
    sampler.set_epoch(EPOCH + 1)
    assert len(sampler) == len(list(sampler)) == 10
    assert not sampler.has_mixed_batch_sizes


def test_position_merges_spans_of_equal_size() -> None:
    position = Position().advance(0, 3, 2, 8)
    assert position.spans == (Span(2, 8, 3),)
    again = Position.from_state(position.state(), 0, 0)
    assert again.advance(0, 3, 1, 8).spans == (Span(2, 8, 3), Span(1, 8, 0))
    assert again.advance(0, 7, 2, 8).spans == (Span(2, 8, 7),)
    assert again.advance(0, 5, 1, 8).advance(0, 6, 1, 8).spans == (Span(2, 8, 3), Span(1, 8, 3))
    assert again.advance(1, 0, 1, 8) == Position(1, (Span(1, 8, 0),))


def test_position_of_earlier_version_is_restored() -> None:
    assert Position.from_state({"epoch": 4, "batch": 3}, 2, 8) == Position(4, (Span(2, 8, 3),))


# CRC-32 of the orders of versions before `Position`, whose checkpoints resume with the same batches.
ORDERS = {
    ("indexed", False, False): 2238533838,
    ("indexed", True, False): 989154197,
    ("indexed", False, True): 1378187043,
    ("indexed", True, True): 2223313772,
    ("streaming", False, False): 2107019584,
    ("streaming", True, False): 2714195053,
    ("streaming", False, True): 1980458946,
    ("streaming", True, True): 1863106066,
}


@pytest.mark.parametrize(("reading", "mixed", "one_subset"), ORDERS)
def test_order_equals_earlier_versions(tmp_path: Path, monkeypatch, reading, mixed, one_subset) -> None:
    mixture = Mixture({"wit": 2.5, "okvqa": 0.3} if mixed else None)
    if reading == "indexed":
        subsets = RowSubsets(NAMES, np.array([0, 1, 2, 1] * 30, np.uint16))
        rows = RowMixture(subsets, mixture) if mixed or one_subset else None
        sampler = GlobalBatches(120, 7, 3, 1, 2, mixture=rows, one_subset=one_subset)
    else:
        monkeypatch.setattr(row_files, "MIN_SPAN_BYTES", 500)
        lines = [json.dumps({"data_id": f"{NAMES[i % 3]}_{i}"}) + "\n" for i in range(200)]
        (tmp_path / "a.jsonl").write_text("".join(lines[:130]))
        (tmp_path / "b.jsonl").write_text("".join(lines[130:]))
        stream = RowStream(
            RowFiles([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]), SubsetNames(NAMES), mixture, 16, seed=3
        )
        sampler = StreamedBatches(stream, 7, 1, 2, one_subset)
    sampler.set_epoch(EPOCH)
    order = [[sample.identity() for sample in batch] for batch in sampler]
    assert zlib.crc32(repr(order).encode()) == ORDERS[reading, mixed, one_subset]
