"""Vectors of an evaluation on disk: written by any number of ranks, compared with one rank in memory."""

from __future__ import annotations

import datetime
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ret_lightning.data.bad_rows import BadRow
from ret_lightning.data.batch import EvaluationBatch
from ret_lightning.data.readers.source_location import SourceLocation
from ret_lightning.data.torch_datasets import EvaluationRows
from ret_lightning.data.types import SIDES, EvaluationSubset
from ret_lightning.distributed.barrier import BARRIER_TIMEOUT, Barrier
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.evaluation import EmbeddingSink, Evaluator, MemorySink, StoredSink
from ret_lightning.evaluation.embedding_sink import limit_rows
from ret_lightning.retrieval import Embeddings, EmbeddingStore, ExactIndex, FaissIndex, Index, gather_by_position
from tests.support.damage import flip
from tests.support.tiny_training import make_module

WORLD = 3
SIZES = {"small": (1, 2), "large": (23, 11)}  # passages, queries
BATCH = 4
BAD = BadRow("missing_image", "no such image", SourceLocation(Path("a.jsonl"), 1))
INDEXES: dict[str, Callable[[], Index]] = {"exact": ExactIndex, "faiss": lambda: FaissIndex(candidates=3)}


def make_subset(name: str, pool: int, queries: int, text: str = "fact") -> EvaluationSubset:
    passages = [
        SimpleNamespace(
            passage_id=f"p{row}", text=f"{text} {row}", image=None, location=SourceLocation(Path("a.jsonl"), row + 1)
        )
        for row in range(pool)
    ]
    requested = [
        SimpleNamespace(data_id=f"q{row}", passage_ids=(f"p{row % pool}",), answers=(), text=f"ask {row}", image=b"x")
        for row in range(queries)
    ]
    return EvaluationSubset(name, "test", requested, passages)


def make_subsets(**options: Any) -> list[EvaluationSubset]:
    return [make_subset(name, *size, **options) for name, size in SIZES.items()]


def make_vectors(loader: int, rows: list[int]) -> torch.Tensor:
    """Return (n, 4, 8) vectors of rows, each with its own seed, so that a misplaced row is detected."""
    vectors = [torch.randn(4, 8, generator=torch.Generator().manual_seed(1000 * loader + row)) for row in rows]
    return torch.nn.functional.normalize(torch.stack(vectors), dim=2)


def files_of(made: list[EvaluationSubset] | None = None, unreadable: dict[tuple[int, int], bool] | None = None) -> list:
    """Return the sides of subsets; `unreadable` maps (file, row) without an image to whether the image is still missing."""
    made = make_subsets() if made is None else made
    files = [EvaluationRows(subset.rows(side), None, subset.name, side) for subset in made for side in SIDES]
    return [
        _Rows(file, {row: bad for (n, row), bad in (unreadable or {}).items() if n == i})
        for i, file in enumerate(files)
    ]


class _Rows(EvaluationRows):
    """Rows that are not decoded; records which rows are requested."""

    def __init__(self, rows: EvaluationRows, bad: dict[int, bool]) -> None:
        super().__init__(rows.rows, None, rows.subset, rows.side)
        self.bad = bad
        self.requested: list[int] = []

    def __getitem__(self, index: int) -> tuple[None, int, BadRow | None]:
        self.requested.append(index)
        return None, index, BAD if self.bad[index] else None


def open_sink(folder: Path, seed: int = 0, **made_with: Any) -> StoredSink:
    torch.manual_seed(seed)
    retriever = make_module().retriever
    if seed:
        with torch.no_grad():
            retriever.passage_tower.start += seed
    return StoredSink(folder, retriever, "test", {"trainer.precision": "32-true", **made_with})


def add(sink: EmbeddingSink, number: int, rows: list[int], vectors: torch.Tensor | None = None, **more: Any) -> None:
    file = files_of()[number]
    batch = EvaluationBatch(None, torch.tensor(rows), file.subset, file.side, **more)
    sink.add(batch, make_vectors(number, rows) if vectors is None else vectors)


def encode(sink: EmbeddingSink, batch: int = BATCH, max_batches: int | None = None) -> list[tuple[int, list[int]]]:
    """Encode the missing batches, at most `max_batches`; return them."""
    todo = [(number, rows) for number, own in enumerate(sink.begin(files_of(), batch)) for rows in own][:max_batches]
    for number, rows in todo:
        add(sink, number, rows)
    return todo


def complete_sink(sink: EmbeddingSink) -> None:
    sink.complete(make_subsets(), torch.device("cpu"), max_bad_fraction=0.5)


def evaluate(sink: StoredSink | None, index: Index) -> dict[str, tuple]:
    """Return the results of a sink; if None, of all rows in memory on this rank."""
    if sink is None:
        sink = MemorySink()
        sink.start()
        for number, file in enumerate(files_of()):
            add(sink, number, list(range(len(file))))
    complete_sink(sink)
    evaluator = Evaluator(index, recall_at=[1, 2], ranked=10)
    return {
        name: (r.query_rows, r.indexed_rows, r.ranking.rows, r.ranking.scores, r.metrics, r.ann_recall)
        for name, r in evaluator.score(make_subsets(), sink, torch.device("cpu")).subsets.items()
    }


def are_equal(one: dict[str, tuple], other: dict[str, tuple]) -> bool:
    """Return whether rankings with scores, and metrics, are bitwise equal."""
    return one.keys() == other.keys() and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for name in one
        for a, b in zip(one[name], other[name], strict=True)
    )


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("index", INDEXES)
def test_stored_vectors_match_memory(tmp_path: Path, index: str) -> None:
    vectors = open_sink(tmp_path)
    encode(vectors)
    assert are_equal(evaluate(vectors, INDEXES[index]()), evaluate(None, INDEXES[index]()))
    store = EmbeddingStore.open(tmp_path / "large" / "passages")
    assert store.embeddings.ids == tuple(f"p{row}" for row in range(23))
    assert torch.equal(store.embeddings.vectors, make_vectors(2, list(range(23))).half())
    queries = EmbeddingStore.open(tmp_path / "large" / "queries").embeddings.vectors
    assert torch.equal(queries, make_vectors(3, list(range(11))))
    assert queries.dtype == torch.float32
    vectors.remove()
    assert not tmp_path.exists()


def test_interrupted_evaluation_resumes_and_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = encode(open_sink(tmp_path / "cut"), max_batches=4)
    assert before == [(0, [0]), (1, [0, 1]), (2, [0, 1, 2, 3]), (2, [4, 5, 6, 7])]
    vectors = open_sink(tmp_path / "cut")
    with caplog.at_level(logging.INFO):
        after = encode(vectors, batch=8)  # the batch size may change
    assert list(vectors.before.values()) == [1, 2, 8, 0]
    assert [line for line in caplog.messages if "already" in line] == [
        "small: 1 of 1 passages are already encoded",
        "small: 2 of 2 queries are already encoded",
        "large: 8 of 23 passages are already encoded",
    ]
    assert after == [(2, list(range(8, 16))), (2, list(range(16, 23))), (3, list(range(8))), (3, [8, 9, 10])]
    assert are_equal(evaluate(vectors, ExactIndex()), evaluate(None, ExactIndex()))


def test_repeated_row_of_finished_rank_is_ignored(tmp_path: Path) -> None:
    encode(open_sink(tmp_path))
    vectors = open_sink(tmp_path)
    assert encode(vectors) == []
    vectors.start()
    add(vectors, 0, [0], torch.ones(1, 4, 8), is_repeated=True)
    assert are_equal(evaluate(vectors, ExactIndex()), evaluate(None, ExactIndex()))


def test_rows_out_of_order_are_refused(tmp_path: Path) -> None:
    vectors = open_sink(tmp_path)
    vectors.begin(files_of(), BATCH)
    with pytest.raises(RuntimeError, match=r"large/passages: expected rows \[0\], got \[4\]"):
        add(vectors, 2, [4])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nonfinite_vectors_report_their_row(tmp_path: Path, number: float) -> None:
    vectors = open_sink(tmp_path)
    vectors.begin(files_of(), BATCH)
    add(vectors, 2, [0, 1, 2, 3])
    broken = make_vectors(2, [4, 5, 6, 7])
    broken[2, 3, 1] = number
    with pytest.raises(DataError) as error:
        add(vectors, 2, [4, 5, 6, 7], broken)
    assert (error.value.code, error.value.line) == ("row-vectors-not-finite", 7)
    assert "trainer.precision=32-true" in error.value.message


def test_leftover_index_is_deleted(tmp_path: Path) -> None:
    encode(open_sink(tmp_path), max_batches=4)
    (tmp_path / "large" / "index").mkdir()
    (tmp_path / "large" / "index" / "index.json").write_text("{}")
    with pytest.raises(DataError):
        open_sink(tmp_path, seed=1).begin(files_of(), BATCH)
    assert (tmp_path / "large" / "index").exists()
    open_sink(tmp_path).begin(files_of(), BATCH)
    assert not (tmp_path / "large" / "index").exists()


def test_damaged_part_is_encoded_again(tmp_path: Path) -> None:
    encode(open_sink(tmp_path), max_batches=4)
    flip(tmp_path / "large" / "passages" / "vectors.f16", 5 * 4 * 8 * 2)
    vectors = open_sink(tmp_path)
    assert encode(vectors)[0] == (2, [4, 5, 6, 7])
    assert are_equal(evaluate(vectors, ExactIndex()), evaluate(None, ExactIndex()))


def test_rows_without_their_images_are_encoded_again(tmp_path: Path) -> None:
    """A part is encoded again if any of its missing images can be read, whether or not the store is finished."""
    sink = open_sink(tmp_path)
    for number, own in enumerate(sink.begin(files_of(), BATCH)):
        for rows in own:
            lost = (9, 11) if (number, rows[0]) == (2, 8) else ()
            add(sink, number, rows, imageless=lost)
    for finish in (False, True, True):
        if finish:
            complete_sink(sink)
            assert (tmp_path / "large" / "passages" / "manifest.json").exists()
        again, files = open_sink(tmp_path), files_of(unreadable={(2, 9): True, (2, 11): True})
        assert again.begin(files, BATCH) == [[], [], [], []]
        assert list(again.before.values()) == [1, 2, 23, 11]
        assert [file.requested for file in files] == [[], [], [9, 11], []]
        if finish:
            complete_sink(again)
        again = open_sink(tmp_path)
        files = files_of(unreadable={(2, 9): True, (2, 11): False})
        assert again.begin(files, BATCH) == [[], [], [[8, 9, 10, 11]], []]
        assert list(again.before.values()) == [1, 2, 19, 11]
    add(again, 2, [8, 9, 10, 11])
    complete_sink(again)
    sink = open_sink(tmp_path)
    assert encode(sink) == []
    assert are_equal(evaluate(sink, ExactIndex()), evaluate(None, ExactIndex()))


def test_too_many_bad_images_leave_stores_unfinished(tmp_path: Path) -> None:
    sink = open_sink(tmp_path)
    for number, own in enumerate(sink.begin(files_of(), BATCH)):
        for rows in own:
            add(sink, number, rows, bad_images=(BAD,) if number == 2 else ())
    with pytest.raises(DataError) as error:
        sink.complete(make_subsets(), torch.device("cpu"), max_bad_fraction=0.2)
    assert (error.value.code, error.value.found, error.value.rows) == ("too-many-bad-rows", 6, 23)
    assert not list(tmp_path.rglob("manifest.json"))
    again = open_sink(tmp_path)
    again.begin(files_of(), BATCH)  # the fraction refers to the whole file, and all rows are stored
    again.complete(make_subsets(), torch.device("cpu"), max_bad_fraction=0)


def test_changed_finished_store_is_refused(tmp_path: Path) -> None:
    first = open_sink(tmp_path)
    encode(first)
    complete_sink(first)
    flip(tmp_path / "large" / "passages" / "vectors.f16", 5 * 4 * 8 * 2)
    vectors = open_sink(tmp_path)
    assert encode(vectors) == []
    with pytest.raises(DataError) as caught:
        complete_sink(vectors)
    assert (caught.value.code, caught.value.path) == ("store-torn", tmp_path / "large" / "passages")
    assert "rows 4 to 7" in caught.value.reason


@pytest.mark.parametrize(
    ("other", "rows", "difference"),
    [
        ({"seed": 1}, {}, r"checkpoint fingerprint 'v2:\w+', not 'v2:\w+'"),
        ({}, {"text": "new"}, r"texts and images '\w+', not '\w+'"),
        ({"trainer.precision": "bf16-mixed"}, {}, r"trainer\.precision '32-true', not 'bf16-mixed'"),
        ({"data.image_folder": "x"}, {}, r"data\.image_folder None, not 'x'"),
    ],
)
def test_store_of_another_evaluation_is_refused(tmp_path: Path, other: dict, rows: dict, difference: str) -> None:
    encode(open_sink(tmp_path), max_batches=4)
    before = read_files(tmp_path)
    with pytest.raises(DataError) as caught:
        open_sink(tmp_path, **other).begin(files_of(make_subsets(**rows)), BATCH)
    assert (caught.value.code, caught.value.path) == ("stored-vectors-differ", tmp_path)
    assert re.fullmatch(difference, caught.value.difference)
    assert "passages of small" in caught.value.message
    assert "\n" not in str(caught.value)
    assert read_files(tmp_path) == before


def test_limit_is_in_whole_batches_of_all_ranks(tmp_path: Path) -> None:
    assert [limit_rows(23, 4, limit) for limit in (None, 1, 5, 6, 99, 1.0, 0.5)] == [23, 4, 20, 23, 23, 23, 12]
    assert limit_rows(0, 4, 1.0) == 0
    with pytest.raises(ConfigError) as error:
        limit_rows(23, 4, 0.1)
    assert (error.value.code, error.value.batches) == ("limit-leaves-no-batch", 6)
    assert open_sink(tmp_path).begin(files_of(), BATCH, 1) == [[[0]], [[0, 1]], [[0, 1, 2, 3]], [[0, 1, 2, 3]]]


def test_other_rows_are_reported_before_other_content(tmp_path: Path) -> None:
    """Other rows also change the digest of texts and images, but the count or the ids are reported."""
    few = [make_subset("small", 9, 2)]
    open_sink(tmp_path).begin(files_of(few), BATCH, 1)
    with pytest.raises(DataError) as error:
        open_sink(tmp_path).begin(files_of(few), BATCH)
    assert (error.value.code, error.value.difference) == ("stored-vectors-differ", "count 4, not 9")
    other = make_subset("small", 9, 2, text="new")
    for row, passage in enumerate(other.pool):
        passage.passage_id = f"other{row}"
    with pytest.raises(DataError) as error:
        open_sink(tmp_path).begin(files_of([other]), BATCH, 1)
    assert (error.value.code, error.value.difference) == ("stored-vectors-differ", "other ids")


def _run_rank(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        f"file://{folder}/barrier",
        timeout=datetime.timedelta(seconds=60),
        rank=number,
        world_size=WORLD,
    )
    found = {}
    for name, index in INDEXES.items():
        vectors = open_sink(Path(folder) / name)
        own = encode(vectors)
        built, shares = [], []
        build = Index.build

        def recorded_build(self: Index, passages: Embeddings, build=build, built=built) -> None:
            built.append((type(self).__name__, len(passages)))
            build(self, passages)

        def subset(*arguments: Any, vectors=vectors, shares=shares) -> Any:
            encoded_subset = StoredSink.get_encoded(vectors, *arguments)
            shares.append((encoded_subset.positions.tolist(), type(encoded_subset.share).__name__))
            return encoded_subset

        Index.build, vectors.get_encoded = recorded_build, subset
        try:
            results = evaluate(vectors, index())
        finally:
            Index.build = build
        found[name] = {
            "own": own,
            "built": built,
            "shares": shares,
            "results": results,
            "before": list(vectors.before.values()),
        }
    vectors = open_sink(Path(folder) / "gone")
    encode(vectors)
    complete_sink(vectors)
    if number == WORLD - 1:
        time.sleep(0.5)  # the other ranks wait before deleting
        found["folder_exists"] = (Path(folder) / "gone" / "large").exists()
    vectors.remove()
    random = torch.randn(7, 4, 8, generator=torch.Generator().manual_seed(0))
    positions = [[], [6, 0, 2, 4], [5, 1, 3]][number]
    found["gathered"] = gather_by_position(
        random[positions].half(), torch.tensor(positions, dtype=torch.int64), 7, torch.device("cpu")
    )
    barrier = Barrier()
    found["sums"] = barrier.all_reduce_sum([number, 1])
    # The timeout of the group is read, not waited for.
    found["patience"] = barrier._group._get_backend(torch.device("cpu")).options._timeout
    torch.save(found, f"{folder}/{number}.pt")
    dist.destroy_process_group()


def _run_rank_on_own_disk(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/barrier", timeout=datetime.timedelta(seconds=60), rank=number, world_size=2
    )
    with pytest.raises(ConfigError) as caught:
        open_sink(Path(folder) / f"disk{number}" / "embeddings").begin(files_of(), BATCH)
    error = caught.value
    torch.save((error.code, error.path, error.rank), f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_without_shared_disk_are_refused(tmp_path: Path) -> None:
    """Files of an earlier evaluation under the same name on the other rank's disk are not mistaken for shared ones."""
    encode(open_sink(tmp_path / "disk1" / "embeddings"), max_batches=4)
    before = read_files(tmp_path / "disk1")
    mp.spawn(_run_rank_on_own_disk, args=(str(tmp_path),), nprocs=2)
    for number in range(2):
        assert torch.load(tmp_path / f"{number}.pt") == ("output-dir-not-shared", f"{tmp_path}/disk0", 1)
    assert read_files(tmp_path / "disk0") == {}
    assert read_files(tmp_path / "disk1") == before


@pytest.mark.slow
def test_ranks_share_stores_and_match_one_rank(tmp_path: Path) -> None:
    encode(open_sink(tmp_path / "exact"), max_batches=4)  # one rank starts, three continue
    mp.spawn(_run_rank, args=(str(tmp_path),), nprocs=WORLD)
    ranks = [torch.load(tmp_path / f"{number}.pt", weights_only=False) for number in range(WORLD)]
    alone = {name: evaluate(None, index()) for name, index in INDEXES.items()}
    every = open_sink(tmp_path / "alone")
    encode(every)
    complete_sink(every)
    for name in INDEXES:
        assert all(are_equal(rank[name]["results"], alone[name]) for rank in ranks)
        assert read_files(tmp_path / name) == read_files(tmp_path / "alone")  # the index is deleted
        rows = sorted((loader, row) for rank in ranks for loader, batch in rank[name]["own"] for row in batch)
        before = ranks[0][name]["before"]
        assert before == ([1, 2, 8, 0] if name == "exact" else [0, 0, 0, 0])
        sizes = [size for sizes in SIZES.values() for size in sizes]
        assert rows == [(loader, row) for loader in range(4) for row in range(before[loader], sizes[loader])]
        for subset_number, count in ((0, 1), (1, 23)):  # each rank has one shard of the mapped store
            shares = [rank[name]["shares"][subset_number] for rank in ranks]
            assert [row for positions, _ in shares for row in positions] == list(range(count))
            assert max(len(positions) for positions, _ in shares) <= -(-count // WORLD)
            assert {kind for _, kind in shares} == {"_MappedEmbeddings"}
    # Only rank 0 built the approximate index; the other ranks built exact indexes of their shares.
    of_faiss = [[size for kind, size in rank["faiss"]["built"] if kind == "FaissIndex"] for rank in ranks]
    assert of_faiss == [[1, 23], [], []]
    assert all(size <= 8 for rank in ranks for kind, size in rank["exact"]["built"])
    assert ranks[-1]["folder_exists"]
    assert not (tmp_path / "gone").exists()
    gathered = torch.randn(7, 4, 8, generator=torch.Generator().manual_seed(0)).half()
    assert all(torch.equal(rank["gathered"], gathered) for rank in ranks)
    assert all(rank["sums"] == [3, 3] for rank in ranks)
    assert all(rank["patience"] == BARRIER_TIMEOUT > datetime.timedelta(days=1) for rank in ranks)
