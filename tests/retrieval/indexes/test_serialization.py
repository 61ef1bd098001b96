"""Indexes that are saved and loaded rank as before; an index that is torn, or of another pool, is refused."""

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
def test_a_loaded_index_ranks_as_the_one_that_was_saved(kind: str, tmp_path: Path) -> None:
    queries, passages = clustered(700, 25)
    index = INDEXES[kind]()
    index.build(passages)
    index.save(tmp_path / "index")
    again = Index.load(tmp_path / "index", passages)
    assert type(again) is type(index)
    expected, found = index.search(queries, 10), again.search(queries, 10)
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(found.scores, expected.scores)
    if kind == "exact":
        assert (found.rows.numpy() == brute_force(queries, passages, 10)[0]).all()
    else:  # more passages than candidates are asked for: ranked exactly, by what is restored too
        assert torch.equal(again.search(queries, 690).rows, index.search(queries, 690).rows)


def test_settings_come_back(tmp_path: Path) -> None:
    _, passages = clustered(100, 1)
    index = FaissIndex("IVF{nlist},SQ4", candidates=7, hits=9, nlist=4, nprobe=2, training_points=500, seed=3)
    index.build(passages)
    index.save(tmp_path)
    again = Index.load(tmp_path, passages)
    names = ("factory", "candidates", "hits", "nlist", "nprobe", "m", "nbits", "M", "training_points", "seed", "gpu")
    assert [getattr(again, name) for name in names] == [getattr(index, name) for name in names]
    assert again.candidates == 7


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


def test_files_of_others_stay(tmp_path: Path) -> None:
    _, passages = clustered(100, 3)
    (tmp_path / "notes.faiss").write_text("mine")
    for kind in ("muvera", "exact"):
        index = INDEXES[kind]()
        index.build(passages)
        index.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "notes.faiss"]


def test_another_index_takes_the_place_of_the_first(tmp_path: Path) -> None:
    _, passages = clustered(100, 3)
    for kind in ("muvera", "exact"):
        index = INDEXES[kind]()
        index.build(passages)
        index.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
    assert isinstance(Index.load(tmp_path, passages), ExactIndex)


@pytest.mark.parametrize("kind", INDEXES)
@pytest.mark.parametrize("count", [63, 64, 65, 700])
def test_other_vectors_of_the_same_ids_are_told(kind: str, count: int, tmp_path: Path) -> None:
    _, passages = clustered(count, 1)
    index = INDEXES[kind]()
    index.build(passages)
    index.save(tmp_path)
    Index.load(tmp_path, Embeddings(passages.ids, passages.vectors.half()))  # as a store has them
    _, others = clustered(count, 1, seed=1)
    with pytest.raises(DataError, match="the ids are the same and the vectors are others, as another checkpoint makes"):
        Index.load(tmp_path, Embeddings(passages.ids, others.vectors))
    for row in (0, count - 1):  # both ends are looked at
        changed = passages.vectors.clone()
        changed[row] = changed[row].flip(0)
        with pytest.raises(DataError, match="the vectors are others"):
            Index.load(tmp_path, Embeddings(passages.ids, changed))
    manifest = json.loads((tmp_path / "index.json").read_text())
    del manifest["vectors_sha256"]  # an index of an earlier version
    (tmp_path / "index.json").write_text(json.dumps(manifest))
    assert type(Index.load(tmp_path, passages)) is type(index)


def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    _, passages = clustered(100, 3)
    with pytest.raises(ValueError, match="build the index before saving it"):
        ExactIndex().save(tmp_path)
    for call in (ExactIndex().build, FaissIndex().build, lambda vectors: Index.load(tmp_path, vectors)):
        with pytest.raises(
            TypeError, match=r"(build|load): passages must be Embeddings, got Tensor; Embeddings\(ids, vec"
        ):
            call(passages.vectors)
    with pytest.raises(DataError, match=r"no saved index, it has no index\.json"):
        Index.load(tmp_path, passages)
    index = INDEXES["ivf"]()
    index.build(passages)
    index.save(tmp_path)
    others = Embeddings([f"q{i}" for i in range(100)], passages.vectors)
    with pytest.raises(
        DataError, match="other passages than these: of the 100 ids some are others, or in another order; load"
    ):
        Index.load(tmp_path, others)
    with pytest.raises(DataError, match=r"their shape is \[100, 8, 32\] there and \[99, 8, 32\] here"):
        Index.load(tmp_path, Embeddings(passages.ids[:99], passages.vectors[:99]))
    file = tmp_path / "tokens.faiss"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"tokens\.faiss: was changed or cut short"):
        Index.load(tmp_path, passages)
    with pytest.raises(DataError, match=r"tokens\.faiss: FAISS cannot read it \("):
        Index.load(tmp_path, passages, verify=False)
    file.unlink()
    with pytest.raises(DataError, match=r"torn, tokens\.faiss is missing"):
        Index.load(tmp_path, passages)
    manifest = json.loads((tmp_path / "index.json").read_text())
    for change, message in (
        ({"state": {}}, "its state is not that of a FaissIndex"),
        ({"kind": "os.system"}, r"no index class is called os\.system"),
        ({"kind": "CandidateIndex"}, "abstract"),
        ({"files": {"../index.json": ""}}, "outside the folder"),
        ({"settings": {"speed": 1}, "files": {}}, "unexpected keyword argument 'speed'"),
        ({"format": 2}, "format 2 is not known"),
        ({"files": 3}, "not the manifest of an index"),
    ):
        (tmp_path / "index.json").write_text(json.dumps(manifest | {"files": {}} | change))
        with pytest.raises(DataError, match=message):
            Index.load(tmp_path, passages)
