"""ret-search, from one query or a file of queries to hits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ret_lightning.errors import DataError
from ret_lightning.search.answer import _search_batches
from tests.support.m2kr_folder import passage, query, write_lines
from tests.support.search_corpus import ALL, NAME, brute_force, images, read
from tests.support.small_runs import Trained

pytestmark = pytest.mark.slow  # uses the session run of ret-train


def test_single_query_prints_json_lines(trained: Trained, index: Path, call, capsys) -> None:
    text = "Find, \"please\": [fact] {3} = ${what}? 'yes' \\"
    image = images(trained) / "sub/3.png"
    assert call("search", f"index={index}", f"query={text}", f"image={image}", "top_k=5") == 0
    hits = read(capsys.readouterr().out)
    scores, ids = brute_force(trained, [(text, image)])
    assert [hit["passage_id"] for hit in hits] == ids[0][:5]
    np.testing.assert_allclose([hit["score"] for hit in hits], scores[0, :5], atol=1e-5)
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    for hit in hits:
        row = passage(NAME, int(hit["passage_id"].removeprefix(f"{NAME}_")))
        assert (hit["text"], hit["image_path"]) == (row["passage_text"], row["passage_image_path"])


@pytest.mark.parametrize(
    "options", [["query=1984"], ["query=null and void"], ["image={image}"], ["query= ", "image={image}"]]
)
def test_query_of_one_modality_and_large_top_k(options, trained: Trained, index: Path, call, capsys) -> None:
    image = images(trained) / "sub/1.png"
    assert call("search", f"index={index}", *(part.format(image=image) for part in options), "top_k=50") == 0
    hits = read(capsys.readouterr().out)
    text = next((part.removeprefix("query=") for part in options if part.startswith("query=")), None)
    _, ids = brute_force(trained, [(text, image if any("image" in part for part in options) else None)])
    assert [hit["passage_id"] for hit in hits] == ids[0]
    assert len(hits) == ALL


@pytest.mark.parametrize("text", ["null", "???"])
def test_query_that_hydra_parses_needs_leading_space(
    text: str, trained: Trained, index: Path, tmp_path: Path, call, capsys
) -> None:
    assert call("search", f"index={index}", f"query={text}") == 2
    assert "Traceback" not in capsys.readouterr().err
    assert call("search", f"index={index}", f"query= {text}", f"top_k={ALL}") == 0
    hits = read(capsys.readouterr().out)
    write_lines(tmp_path / "q.jsonl", [{"data_id": "q", "question": text}])
    assert call("search", f"index={index}", "queries=q.jsonl", f"top_k={ALL}") == 0
    assert [hit | {"data_id": "q"} for hit in hits] == read(capsys.readouterr().out)
    assert [hit["passage_id"] for hit in hits] == brute_force(trained, [(text, None)])[1][0]


def test_file_of_queries(trained: Trained, index: Path, files: Path, tmp_path: Path, call, capsys) -> None:
    out = tmp_path / "found.jsonl"
    options = (f"queries={files / 'queries.jsonl'}", f"image_root={images(trained)}", "top_k=4", "batch_size=2")
    assert call("search", f"index={index}", *options, f"output={out}") == 0
    assert capsys.readouterr().out == ""
    hits = read(out.read_text())
    pairs = []
    for i in range(5):
        row = query(NAME, i)
        pairs.append(
            (f"{row['instruction']} {row['question']}", row["image_path"] and images(trained) / row["image_path"])
        )
    _, ids = brute_force(trained, pairs)
    assert [(hit["data_id"], hit["passage_id"]) for hit in hits] == [
        (f"{NAME}_test_{i}", ids[i][rank]) for i in range(5) for rank in range(4)
    ]


def test_queries_with_same_id_are_renamed(index: Path, tmp_path: Path, call, capsys) -> None:
    rows = [{"data_id": name, "question": f"What is fact {i}?"} for i, name in enumerate(["q", "r", "q", "q"])]
    for part in ("1", "2"):
        write_lines(tmp_path / f"q{part}.jsonl", rows)
    assert call("search", f"index={index}", "queries=q*.jsonl", "top_k=1", "batch_size=3") == 0
    names = ["q", "r", "q#line3", "q#line4", "q#line1", "r#line2", "q#line3#line3", "q#line4#line4"]
    assert [hit["data_id"] for hit in read(capsys.readouterr().out)] == names


def test_search_imports_only_what_it_needs(trained: Trained, files: Path, make, tmp_path: Path) -> None:
    assert make("first.jsonl", f"checkpoint={trained.exported}", "index=small") == 0
    code = (
        "import sys; sys.argv = ['ret-search', 'index=small', 'query=x']\n"
        "from ret_lightning.commands.search import main\nmain()\n"
        "print(sorted({'lightning', 'torchmetrics', 'datasets', 'pandas', 'wandb', 'faiss', 'rich.table', 'qdrant_client'} & "
        "set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("options", "exit_code", "code", "location"),
    [
        (["query="], 2, "query-empty", "query=''"),
        (["query=  "], 2, "query-empty", "query='  '"),
        ([], 2, "query-missing", "query"),
        (["query=x", "queries=q.jsonl"], 2, "exclusive-settings", "queries"),
        (["image=missing.png"], 1, "image-missing", "image missing.png"),
        (["image=/proc/self/status"], 1, "image-format-unknown", "image /proc/self/status"),
        (["query=x", "top_k=0"], 2, "number-too-small", "top_k=0"),
        (["query=x", "top_k=many"], 2, "value-of-wrong-type", "top_k=many"),
        (["query=x", "index=missing"], 1, "index-folder-missing", "index=missing"),
        (["query=x", "index=."], 1, "index-missing", "index=."),
        (["query=x", "index="], 2, "index-setting-empty", "index=''"),
        (["query=x", "qdrant=q", "collection=c"], 2, "exclusive-settings", "qdrant"),
        (["query=x", "index=null"], 2, "index-not-named", "index=null"),
        (["image="], 2, "empty-file-name", "image=''"),
        (["query=x", "image="], 2, "empty-file-name", "image=''"),
        (["queries="], 2, "empty-file-name", "queries=''"),
        (["query=x", "output="], 2, "empty-file-name", "output=''"),
        (["query=x", "output=/tmp"], 1, "output-is-folder", "output=/tmp"),
        (["query=x", "output=/dev/null", "overwrite=true"], 1, "output-not-regular", "output=/dev/null"),
        (["query=x", "output=/proc/missing/f"], 1, "output-not-written", "output=/proc/missing/f"),
        (["queries=missing.jsonl"], 1, "row-file-missing", "missing.jsonl"),
        (["queries={files}/queries.jsonl"], 1, "image-root-not-given", "sub/0.png"),
        (["queries={files}/all.jsonl"], 1, "missing-field", "all.jsonl:1"),
    ],
)
def test_search_errors_are_one_line(options, exit_code, code, location, index, files, call, capsys) -> None:
    assert call("search", f"index={index}", *(option.format(files=files) for option in options)) == exit_code
    captured = capsys.readouterr()
    assert any(location in line and line.endswith(f"[{code}]") for line in captured.err.splitlines()), captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_query_vectors_that_are_not_finite_are_refused() -> None:
    pool = SimpleNamespace(model=SimpleNamespace(source="/models/a"), search=lambda *_: [[]])
    finite = torch.ones(1, 2, 4)
    answers = _search_batches(pool, iter([finite, finite * torch.nan]), ["a", "b"], 5)
    assert next(answers) == ("a", [])
    with pytest.raises(DataError) as caught:
        next(answers)
    assert (caught.value.code, caught.value.path) == ("query-not-finite", "/models/a")
