"""Vectors of an evaluation on disk: what any number of ranks writes and finds, against one rank that keeps all in memory."""

from __future__ import annotations

import datetime
import logging
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
from ret_lightning.evaluation.embedding_sink import limited_rows
from ret_lightning.retrieval import Embeddings, EmbeddingStore, ExactIndex, FaissIndex, Index, gather_at
from tests.support.damage import flip
from tests.support.tiny_training import make_module

WORLD = 3
SIZES = {"small": (1, 2), "large": (23, 11)}  # passages, queries
BATCH = 4
BAD = BadRow("missing_image", "no such image", SourceLocation(Path("a.jsonl"), 1))
INDEXES: dict[str, Callable[[], Index]] = {"exact": ExactIndex, "faiss": lambda: FaissIndex(candidates=3)}


def made_up(name: str, pool: int, queries: int, text: str = "fact") -> EvaluationSubset:
    passages = [
        SimpleNamespace(
            passage_id=f"p{row}", text=f"{text} {row}", image=None, location=SourceLocation(Path("a.jsonl"), row + 1)
        )
        for row in range(pool)
    ]
    asked = [
        SimpleNamespace(data_id=f"q{row}", passage_ids=(f"p{row % pool}",), answers=(), text=f"ask {row}", image=b"x")
        for row in range(queries)
    ]
    return EvaluationSubset(name, "test", asked, passages)


def subsets(**options: Any) -> list[EvaluationSubset]:
    return [made_up(name, *size, **options) for name, size in SIZES.items()]


def encoded(loader: int, rows: list[int]) -> torch.Tensor:
    """(n, 4, 8) vectors of rows, each drawn by itself, so that a row in a wrong place shows."""
    drawn = [torch.randn(4, 8, generator=torch.Generator().manual_seed(1000 * loader + row)) for row in rows]
    return torch.nn.functional.normalize(torch.stack(drawn), dim=2)


def files_of(made: list[EvaluationSubset] | None = None, unreadable: dict[tuple[int, int], bool] | None = None) -> list:
    """The sides of subsets; rows of `unreadable`, by file and position, lack an image that may be readable now."""
    made = subsets() if made is None else made
    files = [EvaluationRows(subset.rows(side), None, subset.name, side) for subset in made for side in SIDES]
    return [
        _Rows(file, {row: bad for (n, row), bad in (unreadable or {}).items() if n == i})
        for i, file in enumerate(files)
    ]


class _Rows(EvaluationRows):
    """Rows that are not decoded; what of them is asked for is recorded."""

    def __init__(self, rows: EvaluationRows, bad: dict[int, bool]) -> None:
        super().__init__(rows.rows, None, rows.subset, rows.side)
        self.bad = bad
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> tuple[None, int, BadRow | None]:
        self.asked.append(index)
        return None, index, BAD if self.bad[index] else None


def stored(folder: Path, seed: int = 0, **made_with: Any) -> StoredSink:
    torch.manual_seed(seed)
    retriever = make_module().retriever
    if seed:
        with torch.no_grad():
            retriever.passage_tower.start += seed
    return StoredSink(folder, retriever, "test", {"trainer.precision": "32-true", **made_with})


def add(sink: EmbeddingSink, number: int, rows: list[int], vectors: torch.Tensor | None = None, **more: Any) -> None:
    file = files_of()[number]
    batch = EvaluationBatch(None, torch.tensor(rows), file.subset, file.side, **more)
    sink.add(batch, encoded(number, rows) if vectors is None else vectors)


def encode(sink: EmbeddingSink, batch: int = BATCH, most: int | None = None) -> list[tuple[int, list[int]]]:
    """Encodes what is missing, up to `most` batches; gives what it encoded."""
    todo = [(number, rows) for number, own in enumerate(sink.begin(files_of(), batch)) for rows in own][:most]
    for number, rows in todo:
        add(sink, number, rows)
    return todo


def complete(sink: EmbeddingSink) -> None:
    sink.complete(subsets(), torch.device("cpu"), max_bad_fraction=0.5)


def evaluated(sink: StoredSink | None, index: Index) -> dict[str, tuple]:
    """The results of what a sink holds; None: of all rows on this rank, in memory."""
    if sink is None:
        sink = MemorySink()
        sink.start()
        for number, file in enumerate(files_of()):
            add(sink, number, list(range(len(file))))
    complete(sink)
    evaluator = Evaluator(index, recall_at=[1, 2], ranked=10)
    return {
        name: (r.query_rows, r.indexed_rows, r.ranking.rows, r.ranking.scores, r.metrics, r.ann_recall)
        for name, r in evaluator.score(subsets(), sink, torch.device("cpu")).subsets.items()
    }


def same(one: dict[str, tuple], other: dict[str, tuple]) -> bool:
    """Rankings, scores included, and metrics, to the last bit."""
    return one.keys() == other.keys() and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for name in one
        for a, b in zip(one[name], other[name], strict=True)
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("index", INDEXES)
def test_stores_give_what_memory_gives(tmp_path: Path, index: str) -> None:
    vectors = stored(tmp_path)
    encode(vectors)
    assert same(evaluated(vectors, INDEXES[index]()), evaluated(None, INDEXES[index]()))
    store = EmbeddingStore.open(tmp_path / "large" / "passages")
    assert store.embeddings.ids == tuple(f"p{row}" for row in range(23))
    assert torch.equal(store.embeddings.vectors, encoded(2, list(range(23))).half())
    queries = EmbeddingStore.open(tmp_path / "large" / "queries").embeddings.vectors
    assert torch.equal(queries, encoded(3, list(range(11))))
    assert queries.dtype == torch.float32
    vectors.remove()
    assert not tmp_path.exists()


def test_it_goes_on_where_it_stopped_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = encode(stored(tmp_path / "cut"), most=4)
    assert before == [(0, [0]), (1, [0, 1]), (2, [0, 1, 2, 3]), (2, [4, 5, 6, 7])]
    vectors = stored(tmp_path / "cut")
    with caplog.at_level(logging.INFO):
        after = encode(vectors, batch=8)  # another size of batches changes nothing of what is there
    assert list(vectors.before.values()) == [1, 2, 8, 0]
    assert [line for line in caplog.messages if "already" in line] == [
        "small: 1 of 1 passages are encoded already",
        "small: 2 of 2 queries are encoded already",
        "large: 8 of 23 passages are encoded already",
    ]
    assert after == [(2, list(range(8, 16))), (2, list(range(16, 23))), (3, list(range(8))), (3, [8, 9, 10])]
    assert same(evaluated(vectors, ExactIndex()), evaluated(None, ExactIndex()))


def test_a_rank_with_nothing_to_do_may_encode_a_row_in_vain(tmp_path: Path) -> None:
    encode(stored(tmp_path))
    vectors = stored(tmp_path)
    assert encode(vectors) == []
    vectors.start()
    add(vectors, 0, [0], torch.ones(1, 4, 8), is_repeated=True)
    assert same(evaluated(vectors, ExactIndex()), evaluated(None, ExactIndex()))


def test_rows_that_are_not_due_are_refused(tmp_path: Path) -> None:
    vectors = stored(tmp_path)
    vectors.begin(files_of(), BATCH)
    with pytest.raises(RuntimeError, match=r"large/passages: rows \[4\] came where \[0\] were due"):
        add(vectors, 2, [4])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_name_their_row(tmp_path: Path, number: float) -> None:
    vectors = stored(tmp_path)
    vectors.begin(files_of(), BATCH)
    add(vectors, 2, [0, 1, 2, 3])
    broken = encoded(2, [4, 5, 6, 7])
    broken[2, 3, 1] = number
    with pytest.raises(DataError) as error:
        add(vectors, 2, [4, 5, 6, 7], broken)
    assert (error.value.code, error.value.line) == ("row-vectors-not-finite", 7)
    assert "trainer.precision=32-true" in error.value.message


def test_an_index_that_was_left_over_is_deleted(tmp_path: Path) -> None:
    encode(stored(tmp_path), most=4)
    (tmp_path / "large" / "index").mkdir()
    (tmp_path / "large" / "index" / "index.json").write_text("{}")
    with pytest.raises(DataError):
        stored(tmp_path, seed=1).begin(files_of(), BATCH)
    assert (tmp_path / "large" / "index").exists()
    stored(tmp_path).begin(files_of(), BATCH)
    assert not (tmp_path / "large" / "index").exists()


def test_a_torn_part_is_encoded_again(tmp_path: Path) -> None:
    encode(stored(tmp_path), most=4)
    flip(tmp_path / "large" / "passages" / "vectors.f16", 5 * 4 * 8 * 2)
    vectors = stored(tmp_path)
    assert encode(vectors)[0] == (2, [4, 5, 6, 7])
    assert same(evaluated(vectors, ExactIndex()), evaluated(None, ExactIndex()))


def test_rows_without_their_images_are_encoded_again(tmp_path: Path) -> None:
    """By an evaluation that begins again, be the store finished or not, unless none of a part's images can be read yet."""
    sink = stored(tmp_path)
    for number, own in enumerate(sink.begin(files_of(), BATCH)):
        for rows in own:
            lost = (9, 11) if (number, rows[0]) == (2, 8) else ()
            add(sink, number, rows, imageless=lost)
    for finish in (False, True, True):
        if finish:
            complete(sink)
            assert (tmp_path / "large" / "passages" / "manifest.json").exists()
        again, files = stored(tmp_path), files_of(unreadable={(2, 9): True, (2, 11): True})
        assert again.begin(files, BATCH) == [[], [], [], []]
        assert list(again.before.values()) == [1, 2, 23, 11]
        assert [file.asked for file in files] == [[], [], [9, 11], []]
        if finish:
            complete(again)
        again = stored(tmp_path)
        files = files_of(unreadable={(2, 9): True, (2, 11): False})
        assert again.begin(files, BATCH) == [[], [], [[8, 9, 10, 11]], []]
        assert list(again.before.values()) == [1, 2, 19, 11]
    add(again, 2, [8, 9, 10, 11])
    complete(again)
    sink = stored(tmp_path)
    assert encode(sink) == []
    assert same(evaluated(sink, ExactIndex()), evaluated(None, ExactIndex()))


def test_nothing_is_finished_where_too_many_images_are_unreadable(tmp_path: Path) -> None:
    sink = stored(tmp_path)
    for number, own in enumerate(sink.begin(files_of(), BATCH)):
        for rows in own:
            add(sink, number, rows, bad_images=(BAD,) if number == 2 else ())
    with pytest.raises(DataError) as error:
        sink.complete(subsets(), torch.device("cpu"), max_bad_fraction=0.2)
    assert (error.value.code, error.value.found, error.value.rows) == ("too-many-bad-rows", 6, 23)
    assert not list(tmp_path.rglob("manifest.json"))
    again = stored(tmp_path)
    again.begin(files_of(), BATCH)  # the share is of the whole file, of which all rows are stored
    again.complete(subsets(), torch.device("cpu"), max_bad_fraction=0)


def test_a_finished_store_that_was_changed_is_refused(tmp_path: Path) -> None:
    first = stored(tmp_path)
    encode(first)
    complete(first)
    flip(tmp_path / "large" / "passages" / "vectors.f16", 5 * 4 * 8 * 2)
    vectors = stored(tmp_path)
    assert encode(vectors) == []
    with pytest.raises(DataError, match=r"large/passages: vectors\.f16 was changed: .* rows 4 to 7 is wrong; delete"):
        complete(vectors)


@pytest.mark.parametrize(
    ("other", "rows", "message"),
    [
        ({"seed": 1}, {}, r"checkpoint fingerprint 'v2:\w+', not 'v2:\w+'"),
        ({}, {"text": "new"}, r"texts and images '\w+', not '\w+'"),
        ({"trainer.precision": "bf16-mixed"}, {}, r"trainer\.precision '32-true', not 'bf16-mixed'"),
        ({"data.image_folder": "x"}, {}, r"data\.image_folder None, not 'x'"),
    ],
)
def test_what_another_model_or_pool_left_is_refused(tmp_path: Path, other: dict, rows: dict, message: str) -> None:
    encode(stored(tmp_path), most=4)
    before = files(tmp_path)
    line = (
        rf"{tmp_path}: holds passages of small from another evaluation, with {message}; delete this folder, or choose "
    )
    with pytest.raises(DataError, match=line) as caught:
        stored(tmp_path, **other).begin(files_of(subsets(**rows)), BATCH)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


def test_a_limit_is_in_whole_batches_of_all_ranks_together(tmp_path: Path) -> None:
    assert [limited_rows(23, 4, limit) for limit in (None, 1, 5, 6, 99, 1.0, 0.5)] == [23, 4, 20, 23, 23, 23, 12]
    assert limited_rows(0, 4, 1.0) == 0
    with pytest.raises(ConfigError) as error:
        limited_rows(23, 4, 0.1)
    assert (error.value.code, error.value.batches) == ("limit-leaves-no-batch", 6)
    assert stored(tmp_path).begin(files_of(), BATCH, 1) == [[[0]], [[0, 1]], [[0, 1, 2, 3]], [[0, 1, 2, 3]]]


def test_fewer_or_other_rows_are_told_of_as_such(tmp_path: Path) -> None:
    """Not as other texts, though of other rows the digest of texts and images is another one, too."""
    few = [made_up("small", 9, 2)]
    stored(tmp_path).begin(files_of(few), BATCH, 1)
    with pytest.raises(
        DataError, match=r"holds passages of small from another evaluation, with count 4, not 9; delete"
    ):
        stored(tmp_path).begin(files_of(few), BATCH)
    other = made_up("small", 9, 2, text="new")
    for row, passage in enumerate(other.pool):
        passage.passage_id = f"other{row}"
    with pytest.raises(DataError, match="from another evaluation, with other ids; delete"):
        stored(tmp_path).begin(files_of([other]), BATCH, 1)


def _rank(number: int, folder: str) -> None:
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
        vectors = stored(Path(folder) / name)
        own = encode(vectors)
        built, shares = [], []
        build = Index.build

        def noted(self: Index, passages: Embeddings, build=build, built=built) -> None:
            built.append((type(self).__name__, len(passages)))
            build(self, passages)

        def subset(*arguments: Any, vectors=vectors, shares=shares) -> Any:
            encoded_subset = StoredSink.encoded(vectors, *arguments)
            shares.append((encoded_subset.positions.tolist(), type(encoded_subset.share).__name__))
            return encoded_subset

        Index.build, vectors.encoded = noted, subset
        try:
            results = evaluated(vectors, index())
        finally:
            Index.build = build
        found[name] = {
            "own": own,
            "built": built,
            "shares": shares,
            "results": results,
            "before": list(vectors.before.values()),
        }
    vectors = stored(Path(folder) / "gone")
    encode(vectors)
    complete(vectors)
    if number == WORLD - 1:
        time.sleep(0.5)  # the others do not delete what this one still uses
        found["there"] = (Path(folder) / "gone" / "large").exists()
    vectors.remove()
    random = torch.randn(7, 4, 8, generator=torch.Generator().manual_seed(0))
    places = [[], [6, 0, 2, 4], [5, 1, 3]][number]
    found["gathered"] = gather_at(
        random[places].half(), torch.tensor(places, dtype=torch.int64), 7, torch.device("cpu")
    )
    barrier = Barrier()
    found["sums"] = barrier.all_reduce_sum([number, 1])
    # No clock is waited for: what the group was made with says how long it would wait.
    found["patience"] = barrier._group._get_backend(torch.device("cpu")).options._timeout
    torch.save(found, f"{folder}/{number}.pt")
    dist.destroy_process_group()


def _rank_apart(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/barrier", timeout=datetime.timedelta(seconds=60), rank=number, world_size=2
    )
    with pytest.raises(ConfigError) as caught:
        stored(Path(folder) / f"disk{number}" / "embeddings").begin(files_of(), BATCH)
    torch.save(str(caught.value), f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_that_do_not_share_a_disk_say_so(tmp_path: Path) -> None:
    """What an earlier evaluation left on the other's own disk, under the same name, does not deceive it."""
    encode(stored(tmp_path / "disk1" / "embeddings"), most=4)
    before = files(tmp_path / "disk1")
    mp.spawn(_rank_apart, args=(str(tmp_path),), nprocs=2)
    line = f"rank 1 does not see output_dir={tmp_path}/disk0; give output_dir=DIR on a disk that all machines share"
    line += " [output-dir-not-shared]"
    for number in range(2):
        assert torch.load(tmp_path / f"{number}.pt") == line
    assert files(tmp_path / "disk0") == {}
    assert files(tmp_path / "disk1") == before


@pytest.mark.slow
def test_ranks_share_the_stores_and_find_what_one_finds(tmp_path: Path) -> None:
    encode(stored(tmp_path / "exact"), most=4)  # one rank begins, three go on
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=WORLD)
    ranks = [torch.load(tmp_path / f"{number}.pt", weights_only=False) for number in range(WORLD)]
    alone = {name: evaluated(None, index()) for name, index in INDEXES.items()}
    every = stored(tmp_path / "alone")
    encode(every)
    complete(every)
    for name in INDEXES:
        assert all(same(rank[name]["results"], alone[name]) for rank in ranks)
        assert files(tmp_path / name) == files(tmp_path / "alone")  # the index is gone, too
        rows = sorted((loader, row) for rank in ranks for loader, batch in rank[name]["own"] for row in batch)
        there = ranks[0][name]["before"]
        assert there == ([1, 2, 8, 0] if name == "exact" else [0, 0, 0, 0])
        sizes = [size for sizes in SIZES.values() for size in sizes]
        assert rows == [(loader, row) for loader in range(4) for row in range(there[loader], sizes[loader])]
        for subset_number, count in ((0, 1), (1, 23)):  # each rank has a stretch of the mapped store, and no more
            shares = [rank[name]["shares"][subset_number] for rank in ranks]
            assert [row for positions, _ in shares for row in positions] == list(range(count))
            assert max(len(positions) for positions, _ in shares) <= -(-count // WORLD)
            assert {kind for _, kind in shares} == {"_MappedEmbeddings"}
    # The approximate index was built by the first rank alone; the others' builds are of exact search on their shares.
    of_faiss = [[size for kind, size in rank["faiss"]["built"] if kind == "FaissIndex"] for rank in ranks]
    assert of_faiss == [[1, 23], [], []]
    assert all(size <= 8 for rank in ranks for kind, size in rank["exact"]["built"])
    assert ranks[-1]["there"]
    assert not (tmp_path / "gone").exists()
    gathered = torch.randn(7, 4, 8, generator=torch.Generator().manual_seed(0)).half()
    assert all(torch.equal(rank["gathered"], gathered) for rank in ranks)
    assert all(rank["sums"] == [3, 3] for rank in ranks)
    assert all(rank["patience"] == BARRIER_TIMEOUT > datetime.timedelta(days=1) for rank in ranks)
