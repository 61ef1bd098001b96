"""Saving and loading indexes; corrupt indexes and indexes of other passages are rejected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ret_lightning.errors import DataError
from ret_lightning.retrieval import Embeddings, ExactIndex, FaissIndex, Index, MuveraIndex
from ret_lightning.retrieval.indexes.base import index_settings
from tests.support.random_pools import brute_force, clustered

INDEXES = {
    "exact": lambda: ExactIndex(block=64),
    "flat": lambda: FaissIndex(candidates=30),
    "half precision": lambda: FaissIndex("SQfp16", candidates=30),
    "ivf": lambda: FaissIndex("IVF{nlist},SQ4", candidates=30, nlist=16, nprobe=3),
    "pq": lambda: FaissIndex("IVF{nlist},{pq}", candidates=30, nlist=16, nprobe=5),
    "graph": lambda: FaissIndex("HNSW{M}_SQ8", candidates=30, M=8),
    "muvera": lambda: MuveraIndex("IVF{nlist},SQ8", candidates=30, nlist=8, nprobe=2, repetitions=4),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_loaded_index_returns_same_ranking(kind: str, tmp_path: Path) -> None:
    queries, passages = clustered(700, 25)
    index = INDEXES[kind]()
    index.build(passages)
    index.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index", passages)
    assert type(loaded) is type(index)
    expected, found = index.search(queries, 10), loaded.search(queries, 10)
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(found.scores, expected.scores)
    if kind == "exact":
        assert (found.rows.numpy() == brute_force(queries, passages, 10)[0]).all()
    else:  # top_k above the number of candidates: ranked exactly
        assert torch.equal(loaded.search(queries, 690).rows, index.search(queries, 690).rows)


def test_settings_round_trip(tmp_path: Path) -> None:
    _, passages = clustered(100, 1)
    index = FaissIndex("IVF{nlist},SQ4", candidates=7, hits=9, nlist=4, nprobe=2, training_points=500, seed=3)
    index.build(passages)
    index.save(tmp_path)
    loaded = Index.load(tmp_path, passages)
    names = ("factory", "candidates", "hits", "nlist", "nprobe", "m", "nbits", "M", "training_points", "seed", "gpu")
    assert [getattr(loaded, name) for name in names] == [getattr(index, name) for name in names]
    assert loaded.candidates == 7


@pytest.mark.parametrize("kind", INDEXES)
def test_clone_has_the_same_settings(kind: str) -> None:
    index = INDEXES[kind]()
    copy = index.clone("cpu")
    assert type(copy) is type(index)
    assert index_settings(copy) == index_settings(index)
    assert copy.device == torch.device("cpu")


def test_failed_save_keeps_the_earlier_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, passages = clustered(100, 3)
    first = INDEXES["ivf"]()
    first.build(passages)
    first.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second = INDEXES["muvera"]()
    second.build(passages)

    def failing(folder: Path) -> dict:
        (folder / "half").write_text("")
        raise OSError("no")

    monkeypatch.setattr(second, "_save", failing)
    with pytest.raises(OSError, match="no"):
        second.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_save_keeps_unrelated_files(tmp_path: Path) -> None:
    _, passages = clustered(100, 3)
    (tmp_path / "notes.faiss").write_text("mine")
    for kind in ("muvera", "exact"):
        index = INDEXES[kind]()
        index.build(passages)
        index.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "notes.faiss"]


def test_save_replaces_earlier_index(tmp_path: Path) -> None:
    _, passages = clustered(100, 3)
    for kind in ("muvera", "exact"):
        index = INDEXES[kind]()
        index.build(passages)
        index.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
    assert isinstance(Index.load(tmp_path, passages), ExactIndex)


@pytest.mark.parametrize("kind", INDEXES)
@pytest.mark.parametrize("count", [63, 64, 65, 700])
def test_other_vectors_of_same_ids_are_rejected(kind: str, count: int, tmp_path: Path) -> None:
    _, passages = clustered(count, 1)
    index = INDEXES[kind]()
    index.build(passages)
    index.save(tmp_path)
    Index.load(tmp_path, Embeddings(passages.ids, passages.vectors.half()))  # as a store has them
    _, others = clustered(count, 1, seed=1)
    changes = [others.vectors]
    for row in (0, count - 1):  # the sample includes both ends
        changes.append(passages.vectors.clone())
        changes[-1][row] = changes[-1][row].flip(0)
    for changed in changes:
        with pytest.raises(DataError) as caught:
            Index.load(tmp_path, Embeddings(passages.ids, changed))
        assert caught.value.code == "saved-index-other-passages"
        assert "different vectors" in caught.value.difference
    manifest = json.loads((tmp_path / "index.json").read_text())
    del manifest["vectors_sha256"]  # an index of an earlier version
    (tmp_path / "index.json").write_text(json.dumps(manifest))
    assert type(Index.load(tmp_path, passages)) is type(index)


def load_error(folder: Path, passages: Embeddings, verify: bool = True) -> DataError:
    with pytest.raises(DataError) as caught:
        Index.load(folder, passages, verify=verify)
    return caught.value


def test_invalid_saved_indexes_are_rejected(tmp_path: Path) -> None:
    _, passages = clustered(100, 3)
    with pytest.raises(ValueError, match="call build before save"):
        ExactIndex().save(tmp_path)
    for call in (ExactIndex().build, FaissIndex().build, lambda vectors: Index.load(tmp_path, vectors)):
        with pytest.raises(
            TypeError, match=r"(build|load): expected Embeddings, got Tensor; create them with Embeddings\(ids, vec"
        ):
            call(passages.vectors)
    assert load_error(tmp_path, passages).code == "saved-index-missing"
    index = INDEXES["ivf"]()
    index.build(passages)
    index.save(tmp_path)
    others = Embeddings([f"q{i}" for i in range(100)], passages.vectors)
    error = load_error(tmp_path, others)
    assert (error.code, error.difference) == (
        "saved-index-other-passages",
        "some of the 100 ids or their order differ",
    )
    error = load_error(tmp_path, Embeddings(passages.ids[:99], passages.vectors[:99]))
    assert (error.code, error.difference) == (
        "saved-index-other-passages",
        "expected shape [100, 8, 32], got [99, 8, 32]",
    )
    file = tmp_path / "tokens.faiss"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    error = load_error(tmp_path, passages)
    assert (error.code, error.path) == ("saved-index-file-changed", file)
    error = load_error(tmp_path, passages, verify=False)
    assert (error.code, error.path) == ("faiss-file-unreadable", file)
    file.unlink()
    error = load_error(tmp_path, passages)
    assert (error.code, error.path) == ("saved-index-file-missing", file)
    manifest = json.loads((tmp_path / "index.json").read_text())
    for change, code, reason in (
        ({"state": {}}, "saved-index-state", None),
        ({"kind": "os.system"}, "saved-index-class-unknown", None),
        ({"kind": "CandidateIndex"}, "saved-index-settings", "abstract"),
        ({"files": {"../index.json": ""}}, "saved-index-manifest", "outside the folder"),
        ({"settings": {"speed": 1}, "files": {}}, "saved-index-settings", "unexpected keyword argument 'speed'"),
        ({"format": 2}, "file-format-unknown", None),
        ({"files": 3}, "saved-index-manifest", "TypeError"),
    ):
        (tmp_path / "index.json").write_text(json.dumps(manifest | {"files": {}} | change))
        error = load_error(tmp_path, passages)
        assert (error.code, error.path) == (code, tmp_path / "index.json")
        assert reason is None or reason in error.reason
