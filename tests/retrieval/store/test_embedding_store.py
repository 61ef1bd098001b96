from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ret_lightning.errors import DataError
from ret_lightning.retrieval import EmbeddingStore, ExactIndex, FaissIndex
from ret_lightning.retrieval.store.store_plan import PLAN, change_config, drop_rows
from tests.support.damage import flip
from tests.support.paths import ROOT
from tests.support.random_pools import brute_force, clustered, embeddings

K, D = 3, 4


def rows(n: int) -> torch.Tensor:
    """Row i is made of i alone, so that a row in a wrong place shows."""
    return torch.stack([torch.randn(K, D, generator=torch.Generator().manual_seed(row)) for row in range(n)])


def create(folder: Path, n: int = 25, **options):
    options = {"fingerprint": "abc", "config": {"model": "m"}, "part_rows": 4, **options}
    return EmbeddingStore.create(folder, [f"p{row}" for row in range(n)], (K, D), **options)


def encode(unfinished, rank: int = 0, world: int = 1, batch: int = 3, stop: int | None = None) -> list[int]:
    """As an encoder does it: this rank's rows in order, batch by batch, up to `stop` of them; returns what it encoded."""
    writer = unfinished.writer(rank, world)
    todo = writer.rows[:stop]
    for start in range(0, len(todo), batch):
        writer.add(rows(25)[todo[start : start + batch]])
    return todo


def finished(folder: Path, n: int = 25) -> EmbeddingStore:
    unfinished = create(folder, n)
    encode(unfinished)
    return unfinished.finish()


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(("world", "batch"), [(1, 1), (1, 100), (3, 2), (9, 5)])
def test_what_ranks_wrote_is_read_back(tmp_path, world, batch):
    unfinished = create(tmp_path / "new" / "store")
    encoded = [row for rank in range(world) for row in encode(unfinished, rank, world, batch)]
    assert sorted(encoded) == list(range(25))
    unfinished.finish()
    store = EmbeddingStore.open(tmp_path / "new" / "store", fingerprint="abc")
    assert store.embeddings.ids == tuple(f"p{row}" for row in range(25))
    assert store.embeddings.vectors.dtype == torch.float16
    assert torch.equal(store.embeddings.vectors, rows(25).half())
    assert store.plan.config == {"model": "m"}
    assert {file.name for file in store.folder.iterdir()} == {"vectors.f16", "ids.json", "manifest.json"}


def test_the_files_are_what_the_module_says(tmp_path):
    """Read by NumPy and JSON alone."""
    finished(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert {key: manifest[key] for key in ("fingerprint", "count", "vectors", "width", "dtype")} == {
        "fingerprint": "abc", "count": 25, "vectors": K, "width": D, "dtype": "float16",
    }  # fmt: skip
    vectors = np.fromfile(tmp_path / "vectors.f16", dtype="<f2").reshape(25, K, D)
    np.testing.assert_array_equal(vectors, rows(25).half().numpy())
    assert json.loads((tmp_path / "ids.json").read_text())[24] == "p24"


def test_any_number_of_ranks_leaves_the_same_files(tmp_path):
    finished(tmp_path / "one")
    unfinished = create(tmp_path / "two")
    for rank in (1, 0):
        encode(unfinished, rank, 2, batch=7)
    unfinished.finish()
    assert content(tmp_path / "one") == content(tmp_path / "two")


def _write_as_rank(folder: Path, rank: int) -> None:
    encode(create(folder), rank, 2)


@pytest.mark.slow
def test_two_processes_write_one_store(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_as_rank, args=(tmp_path / "store", rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store = create(tmp_path / "store").finish()
    assert torch.equal(store.embeddings.vectors, rows(25).half())


def test_an_interrupted_store_goes_on_where_it_stopped(tmp_path):
    encode(create(tmp_path), stop=10)  # two parts of 4 rows, and 2 rows that are lost
    with pytest.raises(DataError, match=r"not finished, 5 of 7 parts are missing; run the encoding again"):
        EmbeddingStore.open(tmp_path)
    with pytest.raises(DataError, match=r"rows 8 to 11 are missing; run the encoding again"):
        create(tmp_path).finish()
    assert encode(create(tmp_path)) == list(range(8, 25))
    assert torch.equal(create(tmp_path).finish().embeddings.vectors, rows(25).half())


def test_another_number_of_ranks_may_go_on(tmp_path):
    encode(create(tmp_path), rank=1, world=2)
    left = [row for rank in range(3) for row in encode(create(tmp_path), rank, 3)]
    assert sorted(left) == [row for row in range(25) if row // 4 % 2 == 0]
    assert torch.equal(create(tmp_path).finish().embeddings.vectors, rows(25).half())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process")
def test_a_killed_writer_loses_no_part_that_was_complete(tmp_path):
    program = f"""
import os, signal
from pathlib import Path
from tests.retrieval.store.test_embedding_store import create, rows
writer = create(Path({str(tmp_path)!r})).writer()
writer.add(rows(11))
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert encode(create(tmp_path)) == list(range(8, 25))
    assert torch.equal(create(tmp_path).finish().embeddings.vectors, rows(25).half())


@pytest.mark.parametrize("damage", ["flip", "truncate", "note", "foreign note"])
def test_a_damaged_part_is_encoded_again(tmp_path, damage):
    encode(create(tmp_path), stop=12)
    if damage == "flip":
        flip(tmp_path / "vectors.f16", 5 * K * D * 2)
    elif damage == "truncate":
        with open(tmp_path / "vectors.f16", "r+b") as file:
            file.truncate(5 * K * D * 2)
    elif damage == "note":
        (tmp_path / "parts" / "000001.json").write_text('{"sha2')
    else:
        (tmp_path / "parts" / "000001.json").write_bytes((tmp_path / "parts" / "000000.json").read_bytes())
    lost = range(4, 12) if damage == "truncate" else range(4, 8)
    assert encode(create(tmp_path)) == [*lost, *range(12, 25)]
    assert torch.equal(create(tmp_path).finish().embeddings.vectors, rows(25).half())


def test_parts_are_of_whole_batches_and_stay_as_they_were_begun(tmp_path):
    begun = create(tmp_path, part_rows=None, batch_rows=7)
    assert begun.plan.part_rows == 7
    writer = begun.writer()
    writer.add(rows(25)[:7])
    again = create(tmp_path, part_rows=None, batch_rows=3)
    assert again.writer().rows == list(range(7, 25))
    again.writer().add(rows(25)[7:])
    assert torch.equal(again.finish().embeddings.vectors, rows(25).half())
    assert create(tmp_path / "large", n=1000, part_rows=None, batch_rows=5).plan.part_rows == 20  # a 64th is 16


def test_ids_that_were_damaged_before_the_end_are_written_again(tmp_path):
    encode(create(tmp_path))
    flip(tmp_path / "ids.json", 4)
    assert create(tmp_path).finish().embeddings.ids == tuple(f"p{row}" for row in range(25))
    assert EmbeddingStore.open(tmp_path).embeddings.ids[24] == "p24"


@pytest.mark.parametrize("stop", [None, 14], ids=["all written", "interrupted"])
@pytest.mark.parametrize("finish", [False, True])
def test_dropped_rows_are_written_again(tmp_path, stop, finish):
    unfinished = create(tmp_path)
    encode(unfinished, stop=stop)
    if finish and stop is None:
        unfinished.finish()
    drop_rows(tmp_path, [1, 9, 10])  # of the first and the third part of four rows
    for file in (PLAN, "parts"):
        assert (tmp_path / file).exists()
    change_config(tmp_path, {"model": "n"})
    again = create(tmp_path, config={"model": "n"})
    assert encode(again) == [*range(4), *range(8, 25 if stop else 12)]
    assert torch.equal(again.finish().embeddings.vectors, rows(25).half())
    with pytest.raises(DataError) as raised:
        create(tmp_path)
    assert raised.value.code == "store-of-another-plan"


def test_a_finished_store_is_left_as_it_is(tmp_path):
    finished(tmp_path)
    before = content(tmp_path)
    again = create(tmp_path)
    assert again.finished
    assert again.writer().rows == []
    again.finish()
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip(f / "vectors.f16", 9 * K * D * 2), r"vectors\.f16 was changed: the checksum of rows 8 to 11 is wrong"),
        (lambda f: os.truncate(f / "vectors.f16", 100), r"vectors\.f16 has 100 bytes, expected 600"),
        (lambda f: (f / "vectors.f16").unlink(), r"vectors\.f16 cannot be read \(No such file"),
        (lambda f: (f / "ids.json").unlink(), r"ids\.json cannot be read \(No such file"),
        (lambda f: flip(f / "ids.json", 4), r"ids\.json was changed"),
        (lambda f: os.truncate(f / "manifest.json", 40), r"manifest\.json: cannot be read as JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), r"manifest\.json: must be a JSON object"),
        (lambda f: (f / "manifest.json").write_text('{"format": 9}'), r"format 9 is not known, only 1"),
        (lambda f: (f / "manifest.json").write_text('{"format": 1}'), r"not the manifest\.json of a store.*fingerprint"),
        (lambda f: edit(f, count="25"), r"not the manifest\.json of a store \(a size is not a whole number\)"),
        (lambda f: edit(f, vectors=7), r"vectors\.f16 has 600 bytes, expected 1400"),
        (lambda f: edit(f, parts_sha256=["x"]), r"has not the checksums of 7 parts"),
        (lambda f: (f / "manifest.json").unlink(), r"no store of embeddings, it has no manifest\.json"),
    ],
)  # fmt: skip
def test_a_store_that_was_torn_or_changed_is_one_clear_line(tmp_path, damage, message):
    finished(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        EmbeddingStore.open(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def edit(folder: Path, **values) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **values}))


def test_a_store_of_another_checkpoint_is_refused(tmp_path):
    finished(tmp_path)
    with pytest.raises(DataError, match="the store is of checkpoint 'abc', not of 'def'"):
        EmbeddingStore.open(tmp_path, fingerprint="def")


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"fingerprint": "def"}, "checkpoint fingerprint 'abc', not 'def'"),
        ({"config": {"model": "n"}}, "model 'm', not 'n'"),
        ({"n": 26}, "count 25, not 26"),
    ],
)
def test_another_store_is_never_written_over(tmp_path, complete, other, message):
    finished(tmp_path) if complete else encode(create(tmp_path), stop=9)
    before = content(tmp_path)
    with pytest.raises(DataError, match=f"holds a store with {message}; delete it or choose another folder"):
        create(tmp_path, **other)
    assert content(tmp_path) == before


def test_other_ids_and_other_folders_are_refused(tmp_path):
    finished(tmp_path / "store")
    with pytest.raises(DataError, match="holds a store with other ids"):
        EmbeddingStore.create(tmp_path / "store", [f"q{row}" for row in range(25)], (K, D), "abc", {"model": "m"}, 4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    with pytest.raises(DataError, match=r"holds 'thesis\.tex', which is no part of a store; choose an empty folder"):
        create(tmp_path / "mine")
    with pytest.raises(DataError, match="no store of embeddings"):
        EmbeddingStore.open(tmp_path / "nowhere")


def test_what_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(ValueError, match="id 'a' occurs 2 times"):
        EmbeddingStore.create(tmp_path / "x", ["a", "a"], (K, D), "abc")
    writer = create(tmp_path / "store").writer()
    with pytest.raises(ValueError, match=r"vectors must be \(n, 3, 4\), got \(2, 4, 3\)"):
        writer.add(torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="26 rows more, and only 25 are left"):
        writer.add(torch.zeros(26, K, D))
    with pytest.raises(ValueError, match="not finite, or too large for float16"):
        writer.add(torch.full((1, K, D), 1e5))
    with pytest.raises(ValueError, match=r"rank 2 is not in \[0, 2\)"):
        create(tmp_path / "store").writer(2, 2)


def test_an_empty_pool_and_one_passage(tmp_path):
    for n in (0, 1):
        store = finished(tmp_path / str(n), n)
        assert store.embeddings.vectors.shape == (n, K, D)
        index = ExactIndex()
        index.build(store.embeddings)
        assert index.search(torch.ones(2, 5, D), 1).rows.tolist() == [[n - 1]] * 2


def test_what_is_written_to_the_tensor_does_not_reach_the_file(tmp_path):
    store = finished(tmp_path)
    store.embeddings.vectors.zero_()
    assert torch.equal(EmbeddingStore.open(tmp_path).embeddings.vectors, rows(25).half())


@pytest.mark.parametrize(
    "index", [ExactIndex(block=64), FaissIndex(candidates=40), FaissIndex("IVF16,SQ8", candidates=60)]
)
def test_searching_a_store_is_searching_its_vectors(tmp_path, index):
    queries, passages = clustered(300, 20)
    unfinished = EmbeddingStore.create(tmp_path, passages.ids, (8, 32), "abc")
    unfinished.writer().add(passages.vectors)
    index.build(unfinished.finish().embeddings)
    half = embeddings(passages.vectors.half())
    exact_rows, exact_scores = brute_force(queries, half, 10)
    ranking = index.search(queries, 10)
    np.testing.assert_array_equal(ranking.rows.numpy(), exact_rows)
    np.testing.assert_array_equal(ranking.scores.numpy(), exact_scores)


MEMORY = """
import sys, torch
from pathlib import Path
from ret_lightning.retrieval import EmbeddingStore, ExactIndex, FaissIndex

def resident():
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS")) / 1024

queries = torch.randn(4, 8, 64)
import faiss
warm = ExactIndex(); warm.build(EmbeddingStore.open(sys.argv[2]).embeddings); warm.search(queries, 10)
before = resident()
store = EmbeddingStore.open(sys.argv[1])
opened = resident()
index = ExactIndex(block=1024)
index.build(store.embeddings)
index.search(queries, 10)
searched = resident()
store.embeddings.vectors.sum()
touched = resident()
print(opened - before, searched - before, touched - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_a_store_does_not_end_up_in_memory(tmp_path):
    """128 MiB on disk: opening it reads them all for the checksums, an exact search for the scores; neither keeps them."""
    for name, n in (("large", 128 * 1024), ("small", 64)):
        unfinished = EmbeddingStore.create(tmp_path / name, list(map(str, range(n))), (8, 64), "abc")
        writer = unfinished.writer()
        block = torch.randn(4096, 8, 64)
        while writer.rows and n:
            writer.add(block[: min(n, 4096)])
            n -= min(n, 4096)
        unfinished.finish()
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "large"), str(tmp_path / "small")],
        capture_output=True,
        text=True,
        check=True,
    )
    opened, searched, touched = (float(number) for number in run.stdout.split())
    assert touched > 120  # the measure sees pages that are mapped
    assert opened < 45  # the ids, 131,072 strings, and the pieces that are read for the checksums
    assert searched < 80
