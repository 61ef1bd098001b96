"""ret-index into Qdrant, and ret-search in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ret_lightning.errors import DataError
from ret_lightning.search.model_identity import ModelIdentity
from ret_lightning.search.passages import read_passages
from tests.support.m2kr_folder import passage, write_lines
from tests.support.random_pools import maxsim_float64
from tests.support.search_corpus import ALL, FIRST, NAME, encoded_ids, images, interrupted_after, needs_qdrant, read
from tests.support.small_runs import Trained

needs_run = pytest.mark.slow  # uses the session run of ret-train


@needs_run
@needs_qdrant
def test_qdrant_equals_exact_search(
    trained: Trained, index: Path, files: Path, make, tmp_path, call, capsys, monkeypatch
) -> None:
    from qdrant_client import QdrantClient

    store, created, create = ("qdrant=store", "collection=corpus"), [], QdrantClient.create_collection
    monkeypatch.setattr(
        QdrantClient, "create_collection", lambda *args, **named: created.append(named) or create(*args, **named)
    )
    assert make("first.jsonl", f"checkpoint={trained.run}", *store, "batch_size=4") == 0
    assert [made["vectors_config"].hnsw_config.m for made in created] == [0]
    assert make("more.jsonl", *store, "append=true") == 0
    capsys.readouterr()
    queries = (f"queries={files / 'queries.jsonl'}", f"image_root={images(trained)}", "top_k=20")
    assert call("search", *store, *queries) == 0
    found = read(capsys.readouterr().out)
    assert call("search", f"index={index}", *queries) == 0
    expected = read(capsys.readouterr().out)
    scores = [[hit.pop("score") for hit in hits] for hits in (found, expected)]
    assert found == expected
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    for options, code, location in (
        (
            ("first.jsonl", f"checkpoint={trained.run}", *store),
            "qdrant-collection-exists",
            "collection=corpus",
        ),
        (("first.jsonl", *store, "append=true"), "passages-indexed-already", "7 of 7 passages"),
        (
            ("first.jsonl", "qdrant=store", "collection=new", "append=true"),
            "qdrant-append-without-collection",
            "collection=new",
        ),
    ):
        assert make(*options) == 1
        error = capsys.readouterr().err
        assert location in error
        assert error.endswith(f"[{code}]\n")
    for server, name, code, location in (
        ("store", "other", "qdrant-collection-missing", "expected one of: corpus"),
        ("missing", "corpus", "qdrant-folder-missing", "qdrant=missing"),
        ("http://127.0.0.1:1", "corpus", "qdrant-request-failed", "qdrant=http://127.0.0.1:1: "),
    ):
        assert call("search", f"qdrant={server}", f"collection={name}", "query=x") == 1
        error = capsys.readouterr().err
        assert location in error
        assert error.endswith(f"[{code}]\n")


@needs_run
@needs_qdrant
def test_interrupted_run_continues(trained: Trained, make, call, capsys, monkeypatch) -> None:
    from ret_lightning.search import qdrant

    calls = encoded_ids(monkeypatch, qdrant)
    options = (f"checkpoint={trained.run}", "qdrant=store", "collection=cut", "batch_size=2")
    with interrupted_after(2, monkeypatch, qdrant):
        assert make("all.jsonl", *options) == 130
    assert call("search", "qdrant=store", "collection=cut", "query=x") == 1
    assert capsys.readouterr().err.endswith("[qdrant-collection-unfinished]\n")
    assert make("first.jsonl", *options, "append=true") == 1
    assert capsys.readouterr().err.endswith("[qdrant-append-to-unfinished]\n")
    assert make("all.jsonl", *options) == 0
    assert [len(ids) for ids in calls] == [12, 8]
    capsys.readouterr()
    assert call("search", "qdrant=store", "collection=cut", "query=x", "top_k=20") == 0
    assert len(read(capsys.readouterr().out)) == ALL


@needs_run
@needs_qdrant
def test_edited_and_moved_rows_are_updated(trained: Trained, make, call, tmp_path: Path, capsys, monkeypatch) -> None:
    from ret_lightning.search import qdrant

    file, rows = tmp_path / "edited.jsonl", [passage(NAME, i) for i in range(FIRST)]
    options = (f"checkpoint={trained.exported}", "batch_size=2")
    store = ("qdrant=store", "collection=cut")
    write_lines(file, rows)
    with interrupted_after(3, monkeypatch, qdrant):  # six rows
        assert make(file, *options, *store) == 130
    rows[4]["passage_text"], rows[0]["passage_image_path"] = "Another fact.", "sub/1.png"  # both are already encoded
    rows[6]["passage_text"] = "A text that is not encoded yet."
    rows = [rows[6], *rows[:6]]  # other rows
    write_lines(file, rows)
    calls = encoded_ids(monkeypatch, qdrant)
    assert make(file, *options, *store) == 0
    assert calls == [["evqa_6", "evqa_0", "evqa_4"]]
    assert make(file, *options, "index=folder") == 0
    answers = []
    for target in (store, ("index=folder",)):
        capsys.readouterr()
        assert call("search", *target, "query=fact", "top_k=20") == 0
        answers.append(read(capsys.readouterr().out))
        for hit in answers[-1]:
            hit["score"] = pytest.approx(hit["score"], abs=1e-5)
    assert answers[0] == answers[1]


@needs_qdrant
def test_unfinished_append_is_not_searched(trained: Trained, make, call, tmp_path: Path, capsys, monkeypatch) -> None:
    from ret_lightning.search import qdrant

    store = ("qdrant=store", "collection=corpus")
    assert make("first.jsonl", f"checkpoint={trained.run}", *store) == 0

    def answers() -> list[dict]:
        capsys.readouterr()
        assert call("search", *store, "query=fact", "top_k=20") == 0
        return read(capsys.readouterr().out)

    before = answers()
    assert len(before) == FIRST
    rows = [passage(NAME, i) for i in range(FIRST, ALL)]
    more, corrected = tmp_path / "more.jsonl", tmp_path / "corrected.jsonl"
    write_lines(more, [*rows[:4], rows[4] | {"passage_image_path": "gone.png"}])
    write_lines(corrected, rows[1:])
    add = (*store, "append=true", "batch_size=1")
    assert make(more, *add) == 1  # fails before encoding
    assert "gone.png" in capsys.readouterr().err
    write_lines(more, rows)
    with interrupted_after(4, monkeypatch, qdrant):
        assert make(more, *add) == 130
    assert answers() == before
    assert make("first.jsonl", *add) == 1  # ids of the unfinished part are checked, too
    error = capsys.readouterr().err
    assert "7 of 7 passages" in error
    assert error.endswith("[passages-indexed-already]\n")
    assert make("first.jsonl", f"checkpoint={trained.run}", *store) == 1
    assert capsys.readouterr().err.endswith("[qdrant-collection-exists]\n")
    assert make(corrected, *add) == 1
    captured = capsys.readouterr().err
    assert f"1 passages that are not in {corrected}, the first is 'evqa_7'" in captured
    assert captured.endswith("[qdrant-begun-otherwise]\n")
    assert answers() == before
    assert make(corrected, *add, "discard=true") == 0
    assert {hit["passage_id"] for hit in answers()} == {f"evqa_{i}" for i in range(ALL)} - {"evqa_7"}


@needs_run
@needs_qdrant
def test_first_of_two_concurrent_runs_stops(trained: Trained, make, call, tmp_path: Path, capsys, monkeypatch) -> None:
    from ret_lightning.search import qdrant

    options = (f"checkpoint={trained.exported}", "qdrant=store", "collection=both", "batch_size=2")
    upsert, calls = qdrant._upsert, []

    def start_other_run(client, name: str, rows: list) -> None:
        upsert(client, name, rows)
        calls.append(name)
        if len(calls) == 2:
            qdrant._write_record(client, name, replace(qdrant._read_record(client, name), run="another"))

    with monkeypatch.context() as patched:
        patched.setattr(qdrant, "_upsert", start_other_run)
        assert make("all.jsonl", *options) == 1
    assert capsys.readouterr().err.endswith("[qdrant-another-writer]\n")
    assert len(calls) == 2

    def write_other_run(client, name: str, rows: list) -> None:
        upsert(client, name, [*rows, (rows[0][0], replace(rows[0][1], passage_id="of another run"), rows[0][2])])

    with monkeypatch.context() as patched:
        patched.setattr(qdrant, "_upsert", write_other_run)
        assert make("all.jsonl", *options) == 1
    error = capsys.readouterr().err
    assert "expected 12 written passages, got 13" in error
    assert error.endswith("[qdrant-count-differs]\n")
    assert call("search", "qdrant=store", "collection=both", "query=x") == 1
    assert make("all.jsonl", *options, "discard=true") == 0
    capsys.readouterr()
    assert call("search", "qdrant=store", "collection=both", "query=x", "top_k=20") == 0
    assert len(read(capsys.readouterr().out)) == ALL


@needs_run
@needs_qdrant
@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 9, 12])
def test_equal_passages_are_ordered_by_row(trained: Trained, make, call, tmp_path: Path, capsys, top_k) -> None:
    rows = [passage(NAME, 1 + i // 4) | {"passage_id": f"p{i}"} for i in range(12)]  # three, each four times
    write_lines(tmp_path / "equal.jsonl", rows)
    answers = []
    for target in (("qdrant=store", "collection=equal"), ("index=folder",)):
        assert make(tmp_path / "equal.jsonl", f"checkpoint={trained.exported}", *target) == 0
        capsys.readouterr()
        assert call("search", *target, "query=fact", f"top_k={top_k}") == 0
        answers.append([hit["passage_id"] for hit in read(capsys.readouterr().out)])
    assert answers[0] == answers[1]
    assert len(answers[0]) == top_k


@needs_qdrant
@pytest.mark.parametrize("step", [1, -1])
def test_collection_ranks_by_maxsim_then_row(tmp_path: Path, step: int) -> None:
    from qdrant_client import QdrantClient

    from ret_lightning.search import qdrant

    vectors = torch.nn.functional.normalize(torch.randn(6, 3, 8), dim=-1).half().float()
    vectors[4] = vectors[1]
    write_lines(tmp_path / "p.jsonl", [passage(NAME, i) for i in range(6)])
    rows = list(zip(range(6), read_passages(str(tmp_path / "p.jsonl")), vectors, strict=True))
    record = qdrant.CollectionRecord(ModelIdentity("/models/a", "published", "v2:abc"), 6, True, "run")
    client = QdrantClient(":memory:")
    qdrant._create_collection(client, "corpus", 8, record)
    qdrant._upsert(client, "corpus", rows[::step])
    collection = qdrant.QdrantCollection(client, "corpus")
    assert (len(collection), collection.model) == (6, record.model)
    queries = torch.nn.functional.normalize(torch.randn(4, 2, 8), dim=-1)
    scores = maxsim_float64(queries, vectors)
    for top_k in (1, 2, 3, 6, 10):
        for hits, own in zip(collection.search(queries, top_k), scores, strict=True):
            order = (-own.round(6)).argsort(kind="stable")[:top_k]
            assert [hit.passage_id for hit in hits] == [f"{NAME}_{row}" for row in order]
            assert [hit.score for hit in hits] == pytest.approx(own[order].tolist(), abs=1e-5)
            assert [hit.rank for hit in hits] == list(range(1, len(order) + 1))


@needs_qdrant
@pytest.mark.parametrize("metadata", [None, {"ret_lightning": {"passages": 6}}, {"ret_lightning": {"model": {}}}])
def test_collection_of_another_program_is_refused(metadata: dict | None) -> None:
    from qdrant_client import QdrantClient, models

    from ret_lightning.search import qdrant

    client = QdrantClient(":memory:")
    client.create_collection(
        "corpus", vectors_config=models.VectorParams(size=4, distance=models.Distance.DOT), metadata=metadata
    )
    with pytest.raises(DataError) as caught:
        qdrant.QdrantCollection(client, "corpus")
    assert (caught.value.code, caught.value.collection) == ("qdrant-collection-foreign", "corpus")
