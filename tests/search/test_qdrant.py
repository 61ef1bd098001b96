"""ret-index into Qdrant, and ret-search from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ret_lightning.search.model_identity import ModelIdentity
from ret_lightning.search.passages import read_passages
from tests.support.m2kr_folder import passage, write_lines
from tests.support.random_pools import maxsim_float64
from tests.support.search_corpus import ALL, FIRST, NAME, encoded_ids, images, interrupted_after, needs_qdrant, read
from tests.support.small_runs import Trained

needs_run = pytest.mark.slow  # of ret-train, which all of them share


@needs_run
@needs_qdrant
def test_qdrant_answers_as_exact_search_does(
    trained: Trained, index: Path, files: Path, make, tmp_path, call, capsys, monkeypatch
) -> None:
    from qdrant_client import QdrantClient

    there, created, create = ("qdrant=store", "collection=corpus"), [], QdrantClient.create_collection
    monkeypatch.setattr(
        QdrantClient, "create_collection", lambda *args, **named: created.append(named) or create(*args, **named)
    )
    assert make("first.jsonl", f"checkpoint={trained.run}", *there, "batch_size=4") == 0
    assert [made["vectors_config"].hnsw_config.m for made in created] == [0]
    assert make("more.jsonl", *there, "append=true") == 0
    capsys.readouterr()
    queries = (f"queries={files / 'queries.jsonl'}", f"image_root={images(trained)}", "top_k=20")
    assert call("search", *there, *queries) == 0
    found = read(capsys.readouterr().out)
    assert call("search", f"index={index}", *queries) == 0
    expected = read(capsys.readouterr().out)
    scores = [[hit.pop("score") for hit in hits] for hits in (found, expected)]
    assert found == expected
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    for options, code, message in (
        (
            ("first.jsonl", f"checkpoint={trained.run}", *there),
            1,
            "collection=corpus: is there already; append=true adds",
        ),
        (("first.jsonl", *there, "append=true"), 1, "7 of 7 passages are in the index already, the first is 'evqa_0'"),
        (("first.jsonl", "qdrant=store", "collection=new", "append=true"), 1, "Qdrant has no collection=new to add to"),
    ):
        assert make(*options) == code
        assert message in capsys.readouterr().err
    assert call("search", "qdrant=store", "collection=other", "query=x") == 1
    assert "Qdrant has no such collection; there are: corpus" in capsys.readouterr().err
    assert call("search", "qdrant=gone", "collection=corpus", "query=x") == 1
    assert "qdrant=gone: no such folder" in capsys.readouterr().err
    assert call("search", "qdrant=http://127.0.0.1:1", "collection=corpus", "query=x") == 1
    assert "qdrant=http://127.0.0.1:1: " in capsys.readouterr().err


@needs_run
@needs_qdrant
def test_an_interrupted_run_into_qdrant_goes_on(trained: Trained, make, call, capsys, monkeypatch) -> None:
    from ret_lightning.search import qdrant

    calls = encoded_ids(monkeypatch, qdrant)
    options = (f"checkpoint={trained.run}", "qdrant=store", "collection=cut", "batch_size=2")
    with interrupted_after(2, monkeypatch, qdrant):
        assert make("all.jsonl", *options) == 130
    assert call("search", "qdrant=store", "collection=cut", "query=x") == 1
    assert "collection=cut: is not finished; run ret-index again" in capsys.readouterr().err
    assert make("first.jsonl", *options, "append=true") == 1
    assert "append=true: collection=cut is not finished, so nothing can be added" in capsys.readouterr().err
    assert make("all.jsonl", *options) == 0
    assert [len(ids) for ids in calls] == [12, 8]
    capsys.readouterr()
    assert call("search", "qdrant=store", "collection=cut", "query=x", "top_k=20") == 0
    assert len(read(capsys.readouterr().out)) == ALL


@needs_run
@needs_qdrant
def test_what_is_in_qdrant_in_the_end_is_what_the_rows_say(
    trained: Trained, make, call, tmp_path: Path, capsys, monkeypatch
) -> None:
    from ret_lightning.search import qdrant

    file, rows = tmp_path / "edited.jsonl", [passage(NAME, i) for i in range(FIRST)]
    there = (f"checkpoint={trained.exported}", "batch_size=2")
    store = ("qdrant=store", "collection=cut")
    write_lines(file, rows)
    with interrupted_after(3, monkeypatch, qdrant):  # six rows
        assert make(file, *there, *store) == 130
    rows[4]["passage_text"], rows[0]["passage_image_path"] = "Another fact.", "sub/1.png"  # both were encoded
    rows[6]["passage_text"] = "A text that was not encoded by then."
    rows = [rows[6], *rows[:6]]  # in other places
    write_lines(file, rows)
    calls = encoded_ids(monkeypatch, qdrant)
    assert make(file, *there, *store) == 0
    assert calls == [["evqa_6", "evqa_0", "evqa_4"]]
    assert make(file, *there, "index=folder") == 0
    answers = []
    for place in (store, ("index=folder",)):
        capsys.readouterr()
        assert call("search", *place, "query=fact", "top_k=20") == 0
        answers.append(read(capsys.readouterr().out))
        for hit in answers[-1]:
            hit["score"] = pytest.approx(hit["score"], abs=1e-5)
    assert answers[0] == answers[1]


@needs_qdrant
def test_a_collection_that_is_added_to_answers_as_before_until_it_is_whole(
    trained: Trained, make, call, tmp_path: Path, capsys, monkeypatch
) -> None:
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
    more, mended = tmp_path / "more.jsonl", tmp_path / "mended.jsonl"
    write_lines(more, [*rows[:4], rows[4] | {"passage_image_path": "gone.png"}])
    write_lines(mended, rows[1:])
    add = (*store, "append=true", "batch_size=1")
    assert make(more, *add) == 1  # before anything is encoded
    assert "gone.png" in capsys.readouterr().err
    write_lines(more, rows)
    with interrupted_after(4, monkeypatch, qdrant):
        assert make(more, *add) == 130
    assert answers() == before
    assert make("first.jsonl", *add) == 1  # none of them twice, in the part that is not whole either
    assert "7 of 7 passages are in the index already" in capsys.readouterr().err
    assert make("first.jsonl", f"checkpoint={trained.run}", *store) == 1
    assert "collection=corpus: is there already; append=true adds to it" in capsys.readouterr().err
    assert make(mended, *add) == 1
    said = capsys.readouterr().err
    assert f"an interrupted run wrote 1 passages that {mended} does not have, the first is 'evqa_7'" in said
    assert answers() == before
    assert make(mended, *add, "discard=true") == 0
    assert {hit["passage_id"] for hit in answers()} == {f"evqa_{i}" for i in range(ALL)} - {"evqa_7"}


@needs_run
@needs_qdrant
def test_of_two_runs_into_one_collection_the_first_stops(
    trained: Trained, make, call, tmp_path: Path, capsys, monkeypatch
) -> None:
    from ret_lightning.search import qdrant

    options = (f"checkpoint={trained.exported}", "qdrant=store", "collection=both", "batch_size=2")
    upsert, calls = qdrant._upsert, []

    def another_begins(client, name: str, rows: list) -> None:
        upsert(client, name, rows)
        calls.append(name)
        if len(calls) == 2:
            qdrant._set_record(client, name, replace(qdrant._record(client, name), run="another"))

    with monkeypatch.context() as patched:
        patched.setattr(qdrant, "_upsert", another_begins)
        assert make("all.jsonl", *options) == 1
    assert "collection=both: another ret-index has begun to write into it, so this one stops" in capsys.readouterr().err
    assert len(calls) == 2

    def another_writes(client, name: str, rows: list) -> None:
        upsert(client, name, [*rows, (rows[0][0], replace(rows[0][1], passage_id="of another run"), rows[0][2])])

    with monkeypatch.context() as patched:
        patched.setattr(qdrant, "_upsert", another_writes)
        assert make("all.jsonl", *options) == 1
    assert "13 passages were written instead of 12" in capsys.readouterr().err
    assert call("search", "qdrant=store", "collection=both", "query=x") == 1
    assert make("all.jsonl", *options, "discard=true") == 0
    capsys.readouterr()
    assert call("search", "qdrant=store", "collection=both", "query=x", "top_k=20") == 0
    assert len(read(capsys.readouterr().out)) == ALL


@needs_run
@needs_qdrant
@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 9, 12])
def test_of_equal_passages_qdrant_too_gives_the_first(
    trained: Trained, make, call, tmp_path: Path, capsys, top_k
) -> None:
    rows = [passage(NAME, 1 + i // 4) | {"passage_id": f"p{i}"} for i in range(12)]  # three, each four times
    write_lines(tmp_path / "equal.jsonl", rows)
    answers = []
    for place in (("qdrant=store", "collection=equal"), ("index=folder",)):
        assert make(tmp_path / "equal.jsonl", f"checkpoint={trained.exported}", *place) == 0
        capsys.readouterr()
        assert call("search", *place, "query=fact", f"top_k={top_k}") == 0
        answers.append([hit["passage_id"] for hit in read(capsys.readouterr().out)])
    assert answers[0] == answers[1]
    assert len(answers[0]) == top_k


@needs_qdrant
@pytest.mark.parametrize("step", [1, -1])
def test_collection_ranks_by_maxsim_and_equal_scores_by_row(tmp_path: Path, step: int) -> None:
    from qdrant_client import QdrantClient

    from ret_lightning.search import qdrant

    vectors = torch.nn.functional.normalize(torch.randn(6, 3, 8), dim=-1).half().float()
    vectors[4] = vectors[1]
    write_lines(tmp_path / "p.jsonl", [passage(NAME, i) for i in range(6)])
    rows = list(zip(range(6), read_passages(str(tmp_path / "p.jsonl")), vectors, strict=True))
    record = qdrant.Record(ModelIdentity("/models/a", "published", "v2:abc"), 6, True, "run")
    client = QdrantClient(":memory:")
    qdrant._create(client, "corpus", 8, record)
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
