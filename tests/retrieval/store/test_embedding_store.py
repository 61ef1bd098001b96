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
    """Row i depends on i only, so a row at a wrong position is detected."""
    return torch.stack([torch.randn(K, D, generator=torch.Generator().manual_seed(row)) for row in range(n)])


def create(folder: Path, n: int = 25, **options):
    options = {"fingerprint": "abc", "config": {"model": "m"}, "part_rows": 4, **options}
    return EmbeddingStore.create(folder, [f"p{row}" for row in range(n)], (K, D), **options)


def encode(unfinished, rank: int = 0, world: int = 1, batch: int = 3, stop: int | None = None) -> list[int]:
    """Encode the rows of a rank batch by batch, up to `stop` of them; return the encoded rows."""
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
def test_store_round_trip(tmp_path, world, batch):
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


def test_files_have_documented_format(tmp_path):
    """Read with NumPy and JSON only."""
    finished(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert {key: manifest[key] for key in ("fingerprint", "count", "vectors", "width", "dtype")} == {
        "fingerprint": "abc", "count": 25, "vectors": K, "width": D, "dtype": "float16",
    }  # fmt: skip
    vectors = np.fromfile(tmp_path / "vectors.f16", dtype="<f2").reshape(25, K, D)
    np.testing.assert_array_equal(vectors, rows(25).half().numpy())
    assert json.loads((tmp_path / "ids.json").read_text())[24] == "p24"


def test_number_of_ranks_does_not_change_files(tmp_path):
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


def test_interrupted_store_continues(tmp_path):
    encode(create(tmp_path), stop=10)  # two parts of four rows; two further rows are lost
    with pytest.raises(DataError) as caught:
        EmbeddingStore.open(tmp_path)
    assert (caught.value.code, caught.value.missing, caught.value.parts) == ("store-not-finished", 5, 7)
    with pytest.raises(DataError) as caught:
        create(tmp_path).finish()
    assert (caught.value.code, caught.value.first, caught.value.last) == ("store-rows-missing", 8, 11)
    assert encode(create(tmp_path)) == list(range(8, 25))
    assert torch.equal(create(tmp_path).finish().embeddings.vectors, rows(25).half())


def test_store_continues_with_other_number_of_ranks(tmp_path):
    encode(create(tmp_path), rank=1, world=2)
    left = [row for rank in range(3) for row in encode(create(tmp_path), rank, 3)]
    assert sorted(left) == [row for row in range(25) if row // 4 % 2 == 0]
    assert torch.equal(create(tmp_path).finish().embeddings.vectors, rows(25).half())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process")
def test_killed_writer_keeps_complete_parts(tmp_path):
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


@pytest.mark.parametrize("damage", ["flip", "truncate", "marker", "other marker"])
def test_damaged_part_is_encoded_again(tmp_path, damage):
    encode(create(tmp_path), stop=12)
    if damage == "flip":
        flip(tmp_path / "vectors.f16", 5 * K * D * 2)
    elif damage == "truncate":
        with open(tmp_path / "vectors.f16", "r+b") as file:
            file.truncate(5 * K * D * 2)
    elif damage == "marker":
        (tmp_path / "parts" / "000001.json").write_text('{"sha2')
    else:
        (tmp_path / "parts" / "000001.json").write_bytes((tmp_path / "parts" / "000000.json").read_bytes())
    lost = range(4, 12) if damage == "truncate" else range(4, 8)
    assert encode(create(tmp_path)) == [*lost, *range(12, 25)]
    assert torch.equal(create(tmp_path).finish().embeddings.vectors, rows(25).half())


def test_parts_hold_whole_batches(tmp_path):
    begun = create(tmp_path, part_rows=None, batch_rows=7)
    assert begun.plan.part_rows == 7
    writer = begun.writer()
    writer.add(rows(25)[:7])
    again = create(tmp_path, part_rows=None, batch_rows=3)
    assert again.writer().rows == list(range(7, 25))
    again.writer().add(rows(25)[7:])
    assert torch.equal(again.finish().embeddings.vectors, rows(25).half())
    assert create(tmp_path / "large", n=1000, part_rows=None, batch_rows=5).plan.part_rows == 20  # a 64th is 16


def test_damaged_ids_of_unfinished_store_are_rewritten(tmp_path):
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


def test_create_keeps_finished_store(tmp_path):
    finished(tmp_path)
    before = content(tmp_path)
    again = create(tmp_path)
    assert again.finished
    assert again.writer().rows == []
    again.finish()
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("damage", "code", "reason"),
    [
        (
            lambda f: flip(f / "vectors.f16", 9 * K * D * 2),
            "store-torn",
            "vectors.f16: checksum of rows 8 to 11 differs",
        ),
        (lambda f: os.truncate(f / "vectors.f16", 100), "store-torn", "vectors.f16: expected 600 bytes, got 100"),
        (lambda f: (f / "vectors.f16").unlink(), "store-torn", "vectors.f16 is not readable (No such file"),
        (lambda f: (f / "ids.json").unlink(), "store-torn", "ids.json is not readable (No such file"),
        (lambda f: flip(f / "ids.json", 4), "store-torn", "ids.json: checksum differs"),
        (lambda f: os.truncate(f / "manifest.json", 40), "store-json-unreadable", None),
        (lambda f: (f / "manifest.json").write_text("[]"), "store-json-no-object", None),
        (lambda f: (f / "manifest.json").write_text('{"format": 9}'), "file-format-unknown", None),
        (lambda f: (f / "manifest.json").write_text('{"format": 1}'), "store-plan-invalid", "fingerprint"),
        (lambda f: edit(f, count="25"), "store-plan-invalid", "not a valid integer"),
        (lambda f: edit(f, vectors=7), "store-torn", "vectors.f16: expected 1400 bytes, got 600"),
        (lambda f: edit(f, parts_sha256=["x"]), "store-torn", "expected checksums of 7 parts"),
        (lambda f: (f / "manifest.json").unlink(), "store-missing", None),
    ],
)
def test_corrupt_store_is_reported_in_one_line(tmp_path, damage, code, reason):
    finished(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError) as caught:
        EmbeddingStore.open(tmp_path)
    assert caught.value.code == code
    assert reason is None or reason in caught.value.reason
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_store_cut_while_open_is_reported(tmp_path):
    store = finished(tmp_path)
    file = tmp_path / "vectors.f16"
    os.truncate(file, 20 * K * D * 2)  # float16
    assert torch.equal(store.embeddings.take(torch.tensor([19])), rows(25)[19:20].half())
    with pytest.raises(DataError) as caught:
        store.embeddings.take(torch.tensor([3, 22]))
    assert (caught.value.code, caught.value.path, caught.value.row) == ("store-file-cut", str(file), 22)


def edit(folder: Path, **values) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **values}))


def test_store_of_other_checkpoint_is_rejected(tmp_path):
    finished(tmp_path)
    with pytest.raises(DataError) as caught:
        EmbeddingStore.open(tmp_path, fingerprint="def")
    assert (caught.value.code, caught.value.found, caught.value.expected) == ("store-other-checkpoint", "abc", "def")


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"fingerprint": "def"}, "checkpoint fingerprint 'abc', not 'def'"),
        ({"config": {"model": "n"}}, "model 'm', not 'n'"),
        ({"n": 26}, "count 25, not 26"),
    ],
)
def test_other_store_is_not_overwritten(tmp_path, complete, other, difference):
    finished(tmp_path) if complete else encode(create(tmp_path), stop=9)
    before = content(tmp_path)
    with pytest.raises(DataError) as caught:
        create(tmp_path, **other)
    assert (caught.value.code, caught.value.difference) == ("store-of-another-plan", difference)
    assert content(tmp_path) == before


def test_other_ids_and_folders_are_rejected(tmp_path):
    finished(tmp_path / "store")
    with pytest.raises(DataError) as caught:
        EmbeddingStore.create(tmp_path / "store", [f"q{row}" for row in range(25)], (K, D), "abc", {"model": "m"}, 4)
    assert (caught.value.code, caught.value.difference) == ("store-of-another-plan", "other ids")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    with pytest.raises(DataError) as caught:
        create(tmp_path / "mine")
    assert (caught.value.code, caught.value.found) == ("store-folder-not-empty", "thesis.tex")
    with pytest.raises(DataError) as caught:
        EmbeddingStore.open(tmp_path / "missing")
    assert caught.value.code == "store-missing"


def test_invalid_rows_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="id 'a' occurs 2 times"):
        EmbeddingStore.create(tmp_path / "x", ["a", "a"], (K, D), "abc")
    writer = create(tmp_path / "store").writer()
    with pytest.raises(ValueError, match=r"expected vectors of shape \(n, 3, 4\), got \(2, 4, 3\)"):
        writer.add(torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="expected at most 25 more rows, got 26"):
        writer.add(torch.zeros(26, K, D))
    with pytest.raises(ValueError, match="must be finite in float16"):
        writer.add(torch.full((1, K, D), 1e5))
    with pytest.raises(ValueError, match=r"expected a value in \[0, 2\), got 2"):
        create(tmp_path / "store").writer(2, 2)


def test_empty_and_single_row_stores(tmp_path):
    for n in (0, 1):
        store = finished(tmp_path / str(n), n)
        assert store.embeddings.vectors.shape == (n, K, D)
        index = ExactIndex()
        index.build(store.embeddings)
        assert index.search(torch.ones(2, 5, D), 1).rows.tolist() == [[n - 1]] * 2


def test_tensor_writes_do_not_change_file(tmp_path):
    store = finished(tmp_path)
    store.embeddings.vectors.zero_()
    assert torch.equal(EmbeddingStore.open(tmp_path).embeddings.vectors, rows(25).half())


@pytest.mark.parametrize(
    "index", [ExactIndex(block=64), FaissIndex(candidates=40), FaissIndex("IVF16,SQ8", candidates=60)]
)
def test_search_of_store_equals_search_of_vectors(tmp_path, index):
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
def test_store_is_not_kept_in_memory(tmp_path):
    """Opening a store of 128 MiB reads it for the checksums, exact search for the scores; neither keeps it in memory."""
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
    assert touched > 120  # mapped pages are included in the measurement
    assert opened < 45  # 131,072 ids, and the blocks read for the checksums
    assert searched < 80
