"""Opening the folder of a search index: complete, corrupt, or replaced in the meantime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ret_lightning.errors import DataError
from ret_lightning.retrieval import EmbeddingStore, ExactIndex, Index
from ret_lightning.search.index_folder import (
    EMBEDDINGS,
    SEARCH,
    Manifest,
    SearchFolder,
    finish_index,
    read_search_manifest,
)
from ret_lightning.search.model_identity import ModelIdentity
from ret_lightning.search.passages import PassageRecord
from tests.support.damage import flip
from tests.support.random_pools import maxsim_float64
from tests.support.search_corpus import ALL, cut
from tests.support.small_runs import Trained

needs_run = pytest.mark.slow  # uses the session run of ret-train


@needs_run
def test_index_replaced_while_opening_is_reopened(trained: Trained, make, tmp_path: Path, monkeypatch) -> None:
    """The version named by the manifest is removed when a new version replaces it."""
    assert make("first.jsonl", f"checkpoint={trained.run}", "index=grown") == 0
    files_to_append = ["more.jsonl"]

    def read_then_append(folder: Path) -> Manifest:
        manifest = read_search_manifest(folder)
        if files_to_append:
            assert make(files_to_append.pop(), "index=grown", "append=true") == 0
        return manifest

    monkeypatch.setattr("ret_lightning.search.index_folder.read_search_manifest", read_then_append)
    opened = SearchFolder(tmp_path / "grown")
    assert (opened.version, len(opened)) == (2, 12)


@needs_run
@pytest.mark.parametrize(
    ("file", "damage", "code", "location"),
    [
        ("v1/embeddings/vectors.f16", flip, "store-torn", "vectors.f16: checksum of rows"),
        ("v1/embeddings/vectors.f16", cut, "store-torn", "vectors.f16: expected 1536 bytes"),
        ("v1/passages.arrow", flip, "index-passages-changed", "v1/passages.arrow"),
        ("v1/passages.arrow", Path.unlink, "index-file-missing", "v1/passages.arrow"),
        ("v1/search/index.json", Path.unlink, "saved-index-missing", "index.json"),
        ("v1/embeddings/manifest.json", Path.unlink, "store-missing", "v1/embeddings"),
        ("v1", shutil.rmtree, "index-file-missing", "v1"),
        ("manifest.json", cut, "index-manifest-invalid", "manifest.json"),
        ("manifest.json", Path.unlink, "index-not-finished", "copy"),
    ],
)
def test_corrupt_indexes_are_reported(file, damage, code, location, index: Path, tmp_path: Path, call, capsys) -> None:
    copy = Path(shutil.copytree(index, tmp_path / "copy"))
    damage(copy / file)
    assert call("search", f"index={copy}", "query=x") == 1
    captured = capsys.readouterr().err
    assert location in captured
    assert captured.endswith(f"[{code}]\n")
    assert len(captured.splitlines()) == 1


@needs_run
def test_corruption_error_names_the_fixing_command(index: Path, make, tmp_path: Path, capsys) -> None:
    for file, code in (
        ("search/index.json", "saved-index-manifest"),
        ("embeddings/manifest.json", "store-json-unreadable"),
    ):
        copy = Path(shutil.copytree(index, tmp_path / file.replace("/", "_")))
        cut(copy / "v1" / file)
        assert make("more.jsonl", f"index={copy}", "append=true") == 1
        captured = capsys.readouterr().err
        assert captured.endswith(f"; run ret-index passages=FILE index=NEW_FOLDER [{code}]\n")
        assert len(captured.splitlines()) == 1


@needs_run
def test_folder_is_readable_as_store_and_index(index: Path) -> None:
    store = EmbeddingStore.open(index / "v1/embeddings")
    searched = Index.load(index / "v1/search", store.embeddings)
    ranking = searched.search(store.embeddings.vectors.float(), 3)
    assert ranking.rows[:, 0].tolist() == list(range(ALL))  # every passage is nearest to itself


MODEL = ModelIdentity("/models/a", "published", "v2:abc")


def make_version(folder: Path, version: int, count: int, vectors: torch.Tensor) -> list[PassageRecord]:
    """Write embeddings and index of the first passages as ret-index does; return their records."""
    version_folder = folder / f"v{version}"
    ids = [f"p{i}" for i in range(count)]
    store = EmbeddingStore.create(
        version_folder / EMBEDDINGS, ids, vectors.shape[1:], MODEL.fingerprint, {"dtype": "float16"}
    )
    store.writer().add(vectors[:count])
    index = ExactIndex()
    index.build(store.finish().embeddings)
    index.save(version_folder / SEARCH)
    return [PassageRecord(name, f"text of {name}", None) for name in ids]


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(5, 2, 8), dim=-1)


def test_finished_version_replaces_earlier_one(tmp_path: Path, vectors: torch.Tensor) -> None:
    finish_index(tmp_path, 1, MODEL, make_version(tmp_path, 1, 3, vectors))
    assert (SearchFolder(tmp_path).version, len(SearchFolder(tmp_path))) == (1, 3)
    records = make_version(tmp_path, 2, 5, vectors)
    assert len(SearchFolder(tmp_path)) == 3  # answers until version 2 is finished
    finish_index(tmp_path, 2, MODEL, records)
    opened = SearchFolder(tmp_path)
    assert (opened.version, opened.model, list(opened.records)) == (2, MODEL, records)
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "v2"}


def test_hits_are_ordered_by_maxsim(tmp_path: Path, vectors: torch.Tensor) -> None:
    finish_index(tmp_path, 1, MODEL, make_version(tmp_path, 1, 5, vectors))
    queries = torch.nn.functional.normalize(torch.randn(3, 4, 8), dim=-1)
    scores = maxsim_float64(queries, vectors.half())
    for hits, own in zip(SearchFolder(tmp_path).search(queries, 9), scores, strict=True):
        order = (-own).argsort(kind="stable")
        assert [(hit.rank, hit.passage_id, hit.text) for hit in hits] == [
            (rank, f"p{row}", f"text of p{row}") for rank, row in enumerate(order, start=1)
        ]
        assert [hit.score for hit in hits] == pytest.approx(own[order].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "index-missing"),
        ("v1", "index-not-finished"),
        ("{", "index-manifest-invalid"),
        ('{"format": 1}', "index-manifest-invalid"),
        ('{"format": 7}', "file-format-unknown"),
    ],
)
def test_invalid_manifests_are_rejected(content: str | None, code: str, tmp_path: Path) -> None:
    if content == "v1":
        (tmp_path / "v1").mkdir()
    elif content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError) as caught:
        read_search_manifest(tmp_path)
    assert caught.value.code == code
    with pytest.raises(DataError) as caught:
        read_search_manifest(tmp_path / "nowhere")
    assert caught.value.code == "index-folder-missing"


@pytest.mark.parametrize(("records", "recorded"), [(2, 2), (3, 2)])
def test_number_of_passages_is_verified(tmp_path: Path, vectors: torch.Tensor, records: int, recorded: int) -> None:
    finish_index(tmp_path, 1, MODEL, make_version(tmp_path, 1, 3, vectors)[:records])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"passages": recorded}))
    with pytest.raises(DataError) as caught:
        SearchFolder(tmp_path)
    found = caught.value
    assert (found.code, found.passages, found.embeddings, found.expected) == (
        "index-counts-differ",
        records,
        3,
        recorded,
    )
