"""Opening the folder of a search index: whole, torn, or replaced meanwhile."""

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

needs_run = pytest.mark.slow  # of ret-train, which all of them share


@needs_run
def test_an_index_that_grows_while_it_is_opened_is_opened_again(
    trained: Trained, make, tmp_path: Path, monkeypatch
) -> None:
    """The version that the manifest named is removed when another takes its place."""
    assert make("first.jsonl", f"checkpoint={trained.run}", "index=grown") == 0
    growing = ["more.jsonl"]

    def late(folder: Path) -> Manifest:
        manifest = read_search_manifest(folder)
        if growing:
            assert make(growing.pop(), "index=grown", "append=true") == 0
        return manifest

    monkeypatch.setattr("ret_lightning.search.index_folder.read_search_manifest", late)
    opened = SearchFolder(tmp_path / "grown")
    assert (opened.version, len(opened)) == (2, 12)


@needs_run
@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("v1/embeddings/vectors.f16", flip, "the checksum of rows"),
        ("v1/embeddings/vectors.f16", cut, "expected 1536"),
        ("v1/passages.arrow", flip, "passages.arrow: was changed or cut short"),
        ("v1/passages.arrow", Path.unlink, "torn, v1/passages.arrow is missing"),
        ("v1/search/index.json", Path.unlink, "no saved index, it has no index.json"),
        ("v1/embeddings/manifest.json", Path.unlink, "no store of embeddings"),
        ("v1", shutil.rmtree, "torn, v1 is missing"),
        ("manifest.json", cut, "manifest.json: not the manifest of an index"),
        ("manifest.json", Path.unlink, "the index is not finished; run ret-index again"),
    ],
)
def test_torn_indexes_are_told(file, damage, message, index: Path, tmp_path: Path, call, capsys) -> None:
    copy = Path(shutil.copytree(index, tmp_path / "copy"))
    damage(copy / file)
    assert call("search", f"index={copy}", "query=x") == 1
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


@needs_run
def test_what_is_torn_is_told_with_the_command_that_mends_it(index: Path, make, tmp_path: Path, capsys) -> None:
    for file, code in (
        ("search/index.json", "saved-index-manifest"),
        ("embeddings/manifest.json", "store-json-unreadable"),
    ):
        copy = Path(shutil.copytree(index, tmp_path / file.replace("/", "_")))
        cut(copy / "v1" / file)
        assert make("more.jsonl", f"index={copy}", "append=true") == 1
        said = capsys.readouterr().err
        assert said.endswith(f"; ret-index passages=FILE index=NEW_FOLDER makes all of it again [{code}]\n")
        assert len(said.splitlines()) == 1


@needs_run
def test_the_folder_is_read_as_a_library_too(index: Path) -> None:
    store = EmbeddingStore.open(index / "v1/embeddings")
    searched = Index.load(index / "v1/search", store.embeddings)
    ranking = searched.search(store.embeddings.vectors.float(), 3)
    assert ranking.rows[:, 0].tolist() == list(range(ALL))  # every passage is nearest to itself


MODEL = ModelIdentity("/models/a", "published", "v2:abc")


def make_version(folder: Path, version: int, count: int, vectors: torch.Tensor) -> list[PassageRecord]:
    """Embeddings and index of the first passages, as ret-index writes them, and their records."""
    at = folder / f"v{version}"
    ids = [f"p{i}" for i in range(count)]
    store = EmbeddingStore.create(at / EMBEDDINGS, ids, vectors.shape[1:], MODEL.fingerprint, {"dtype": "float16"})
    store.writer().add(vectors[:count])
    index = ExactIndex()
    index.build(store.finish().embeddings)
    index.save(at / SEARCH)
    return [PassageRecord(name, f"text of {name}", None) for name in ids]


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(5, 2, 8), dim=-1)


def test_finished_version_takes_the_place_of_the_former(tmp_path: Path, vectors: torch.Tensor) -> None:
    finish_index(tmp_path, 1, MODEL, make_version(tmp_path, 1, 3, vectors))
    assert (SearchFolder(tmp_path).version, len(SearchFolder(tmp_path))) == (1, 3)
    records = make_version(tmp_path, 2, 5, vectors)
    assert len(SearchFolder(tmp_path)) == 3  # which answers until the second one is finished
    finish_index(tmp_path, 2, MODEL, records)
    opened = SearchFolder(tmp_path)
    assert (opened.version, opened.model, list(opened.shown)) == (2, MODEL, records)
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "v2"}


def test_hits_are_the_passages_by_maxsim(tmp_path: Path, vectors: torch.Tensor) -> None:
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
def test_folders_without_a_readable_manifest(content: str | None, code: str, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(("records", "noted"), [(2, 2), (3, 2)])
def test_number_of_passages_is_checked(tmp_path: Path, vectors: torch.Tensor, records: int, noted: int) -> None:
    finish_index(tmp_path, 1, MODEL, make_version(tmp_path, 1, 3, vectors)[:records])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"passages": noted}))
    with pytest.raises(DataError) as caught:
        SearchFolder(tmp_path)
    found = caught.value
    assert (found.code, found.passages, found.embeddings, found.expected) == ("index-counts-differ", records, 3, noted)
