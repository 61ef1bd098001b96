"""Tests of streaming: each row once per epoch over all ranks, in an order that depends on the seed and the epoch only."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from ret_lightning.data.epoch_position import Position, Span
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.readers import row_files
from ret_lightning.data.readers.row_files import SUFFIXES, RowFiles
from ret_lightning.data.sampling.batch_samplers import SampledRow
from ret_lightning.data.sampling.mixture import Mixture
from ret_lightning.data.sampling.streaming import RowStream, StreamedBatches, interleave, shuffle_with_buffer
from ret_lightning.errors import DataError
from tests.support.row_files import parsed, write

NAMES = ("wit", "okvqa", "evqa")
ROWS = [{"data_id": f"{NAMES[i % 3]}_{i}", "question": "?" * (i % 11)} for i in range(200)]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RowFiles:
    monkeypatch.setattr(row_files, "MIN_SPAN_BYTES", 500)
    return RowFiles([write(tmp_path / "a.jsonl", ROWS[:130]), write(tmp_path / "b.jsonl", ROWS[130:])])


def stream(files: RowFiles, mixture: Mixture | None = None, buffer: int = 16, **options) -> RowStream:
    return RowStream(files, SubsetNames(NAMES), mixture or Mixture(), buffer, **options)


def ranks(rows: RowStream, batch: int, world: int, epoch: int = 0, served: int = 0, one_subset: bool = False) -> list:
    samplers = [StreamedBatches(rows, batch, rank, world, one_subset) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
        sampler.resume(Position(epoch, (Span(world, batch, served),)))
    return [list(sampler) for sampler in samplers]


def ids(batches: list[list[SampledRow]]) -> list[str]:
    return [parsed(sample.row.content)["data_id"] for batch in batches for sample in batch]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 7, 32])
def test_epoch_samples_each_row_once(files: RowFiles, world: int, batch: int) -> None:
    parts = ranks(stream(files), batch, world)
    assert len({len(part) for part in parts}) == 1
    seen = Counter(name for part in parts for name in ids(part))
    rest = len(ROWS) % (batch * world)
    dropped = rest if rest < world else 0
    assert set(seen.values()) == {1}
    assert len(seen) == len(ROWS) - dropped


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_file_formats_yield_each_row_once(tmp_path: Path, suffix: str) -> None:
    files = RowFiles([write(tmp_path / f"{i}{suffix}", ROWS[i::3]) for i in range(3)])
    for epoch in range(2):
        assert sorted(ids(ranks(stream(files), 9, 1, epoch)[0])) == sorted(row["data_id"] for row in ROWS)


def test_global_batches_do_not_depend_on_world_size(files: RowFiles) -> None:
    one = ranks(stream(files), 12, 1)[0]
    for world, batch in ((2, 6), (3, 4), (4, 3)):
        parts = ranks(stream(files), batch, world)
        assert [[sample for part in parts for sample in part[index]] for index in range(len(one))] == one


def test_order_depends_on_seed_and_epoch(files: RowFiles) -> None:
    first = ids(ranks(stream(files), 10, 1)[0])
    assert ids(ranks(stream(files), 10, 1)[0]) == first
    assert ids(ranks(stream(files), 10, 1, epoch=1)[0]) != first
    assert ids(ranks(stream(files, seed=1), 10, 1)[0]) != first
    assert first != [row["data_id"] for row in ROWS]


@pytest.mark.parametrize("one_subset", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 5])
def test_resume_with_same_batch_size_continues_epoch(files: RowFiles, world: int, seed: int, one_subset: bool) -> None:
    rows = stream(files, Mixture({"okvqa": 2.5, "wit": 0.5}), seed=seed)
    for epoch in (0, 3):
        whole = ranks(rows, 8, world, epoch, one_subset=one_subset)
        for served in (0, 1, 5, len(whole[0])):
            assert ranks(rows, 8, world, epoch, served, one_subset) == [part[served:] for part in whole]
    sampler = StreamedBatches(rows, 8, one_subset=one_subset)
    sampler.resume(Position(0, (Span(1, 8, 2),)))
    sampler.set_epoch(1)
    assert list(sampler) == ranks(rows, 8, 1, 1, one_subset=one_subset)[0]  # the next epoch is complete


def test_mixture_repeats_and_subsamples_subsets(files: RowFiles) -> None:
    by_subset = Counter(row["data_id"].split("_")[0] for row in ROWS)
    rows = stream(files, Mixture({"okvqa": 3, "wit": 0, "evqa": 0.5}))
    epochs = [Counter(ids(ranks(rows, 8, 1, epoch)[0])) for epoch in range(40)]
    for counts in epochs:
        okvqa = {name: count for name, count in counts.items() if name.startswith("okvqa")}
        assert len(okvqa) == by_subset["okvqa"]
        assert set(okvqa.values()) == {3}
        assert not any(name.startswith("wit") for name in counts)
    halves = [frozenset(name for name in counts if name.startswith("evqa")) for counts in epochs]
    assert len(set(halves)) == 40  # a new half per epoch
    mean = sum(map(len, halves)) / 40
    assert mean == pytest.approx(by_subset["evqa"] / 2, abs=3 * (by_subset["evqa"] / 4 / 40) ** 0.5)
    assert {sample.copy for batch in ranks(rows, 8, 1)[0] for sample in batch} == {0, 1, 2}


def test_batch_contains_a_row_once(files: RowFiles) -> None:
    batches = ranks(stream(files, Mixture({"okvqa": 9})), 20, 1)[0]
    assert sum(map(len, batches)) == len(ROWS) + 8 * sum("okvqa" in row["data_id"] for row in ROWS)
    for batch in batches[:-6]:  # only copies may remain at the end
        assert len({sample.row for sample in batch}) == len(batch)


def test_one_subset_batches_have_one_subset(files: RowFiles) -> None:
    for world in (1, 2):
        parts = ranks(stream(files), 8, world, one_subset=True)
        together = [ids([part[index] for part in parts]) for index in range(len(parts[0]))]
        subsets = [{name.split("_")[0] for name in batch} for batch in together]
        assert all(len(names) == 1 for names in subsets)
        assert sorted(name for batch in together for name in batch) == sorted(row["data_id"] for row in ROWS)
        assert any(subsets[i] == subsets[i + 1] for i in range(len(subsets) - 1))  # subsets do not alternate


def test_limit_uses_first_rows(files: RowFiles) -> None:
    assert sorted(ids(ranks(stream(files, limit=140), 8, 1)[0])) == sorted(row["data_id"] for row in ROWS[:140])
    only = stream(files, Mixture({"wit": 1, "okvqa": 2}, others=0), limit=20)
    expected = [row["data_id"] for row in ROWS if not row["data_id"].startswith("evqa")][:20]
    expected += [name for name in expected if name.startswith("okvqa")]
    assert sorted(ids(ranks(only, 8, 1)[0])) == sorted(expected)


def test_empty_mixture_is_an_error(files: RowFiles) -> None:
    with pytest.raises(DataError) as error:
        list(StreamedBatches(stream(files, Mixture(others=0)), 8, world_size=2))
    assert (error.value.code, error.value.path, error.value.ranks) == ("stream-too-short", str(files), 2)


def test_broken_rows_count_as_unknown(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"data_id": "wit_1"}\n{broken\n[1]\n{"data_id": 5}\n{"subset": "Okvqa"}\n\xff\n{"subset": 3}\n')
    rows = stream(RowFiles([path]), Mixture({"wit": 0}))
    assert [rows.subset(row) for row in rows.files.read(rows.files.spans()[0])] == [
        "wit", "unknown", "unknown", "unknown", "okvqa", "unknown", "unknown",
    ]  # fmt: skip
    assert len(ranks(rows, 1, 1)[0]) == 6


def test_buffer_shuffle_is_a_wide_permutation() -> None:
    moved = list(shuffle_with_buffer(iter(range(10_000)), 100, Random(0)))
    assert sorted(moved) == list(range(10_000))
    distances = [abs(index - item) for index, item in enumerate(moved[:9_000])]
    assert 70 < sum(distances) / len(distances) < 130
    assert sorted(shuffle_with_buffer(range(50), 100, Random(0))) == list(range(50))
    orders = Counter(tuple(shuffle_with_buffer(range(3), 100, Random(seed))) for seed in range(600))
    assert len(orders) == 6
    assert min(orders.values()) > 70  # about 100 each: fewer items than the buffer are shuffled uniformly


def test_interleave_reads_several_sources_at_once() -> None:
    sources = [iter([(s, i) for i in range(100)]) for s in range(10)]
    mixed = list(interleave(sources, 4, Random(0)))
    assert sorted(mixed) == [(s, i) for s in range(10) for i in range(100)]
    for source in range(10):
        assert [i for s, i in mixed if s == source] == list(range(100))
    assert {s for s, _ in mixed[:60]} == {0, 1, 2, 3}
    assert list(interleave([], 4, Random(0))) == []
    assert list(interleave([iter([]), iter([1])], 1, Random(0))) == [1]


def test_sorted_file_yields_mixed_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small buffer, eight open spans are enough to mix a file that is sorted by subset."""
    monkeypatch.setattr(row_files, "MIN_SPAN_BYTES", 1_000)
    rows = [{"data_id": f"{NAMES[i // 1000]}_{i}"} for i in range(3000)]
    batches = ranks(stream(RowFiles([write(tmp_path / "a.jsonl", rows)]), buffer=100), 32, 1)[0]
    kinds = [len({name.split("_")[0] for name in ids([batch])}) for batch in batches]
    assert sum(kind > 1 for kind in kinds) > 0.9 * len(kinds)


def test_streaming_reads_no_further_than_its_buffer(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"data_id": f"wit_{i}"}) + "\n" for i in range(5000)))
    rows = stream(RowFiles([path]), buffer=10)
    read_rows = 0
    read = RowFiles.read

    def counted(self: RowFiles, span):
        nonlocal read_rows
        for row in read(self, span):
            read_rows += 1
            yield row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowFiles, "read", counted)
        next(iter(StreamedBatches(rows, 4)))
    assert read_rows <= 10 + 2 * 4  # one batch is read ahead to detect the last one
