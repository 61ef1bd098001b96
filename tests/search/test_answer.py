"""ret-search from a query, or a file of queries, to what is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.m2kr_folder import passage, query, write_lines
from tests.support.search_corpus import ALL, NAME, brute_force, images, read
from tests.support.small_runs import Trained

pytestmark = pytest.mark.slow  # they share one run of ret-train


def test_one_query_in_a_pipe(trained: Trained, index: Path, call, capsys) -> None:
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
    "asked", [["query=1984"], ["query=null and void"], ["image={image}"], ["query= ", "image={image}"]]
)
def test_text_alone_or_image_alone_and_more_than_there_is(asked, trained: Trained, index: Path, call, capsys) -> None:
    image = images(trained) / "sub/1.png"
    assert call("search", f"index={index}", *(part.format(image=image) for part in asked), "top_k=50") == 0
    hits = read(capsys.readouterr().out)
    text = next((part.removeprefix("query=") for part in asked if part.startswith("query=")), None)
    _, ids = brute_force(trained, [(text, image if any("image" in part for part in asked) else None)])
    assert [hit["passage_id"] for hit in hits] == ids[0]
    assert len(hits) == ALL


@pytest.mark.parametrize("text", ["null", "???"])
def test_what_hydra_takes_for_itself_is_a_text_with_a_space_in_front(
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


def test_many_queries(trained: Trained, index: Path, files: Path, tmp_path: Path, call, capsys) -> None:
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


def test_queries_of_the_same_id_are_told_apart(index: Path, tmp_path: Path, call, capsys) -> None:
    rows = [{"data_id": name, "question": f"What is fact {i}?"} for i, name in enumerate(["q", "r", "q", "q"])]
    for part in ("1", "2"):
        write_lines(tmp_path / f"q{part}.jsonl", rows)
    assert call("search", f"index={index}", "queries=q*.jsonl", "top_k=1", "batch_size=3") == 0
    names = ["q", "r", "q#line3", "q#line4", "q#line1", "r#line2", "q#line3#line3", "q#line4#line4"]
    assert [hit["data_id"] for hit in read(capsys.readouterr().out)] == names


def test_a_search_imports_only_what_it_needs(trained: Trained, files: Path, make, tmp_path: Path) -> None:
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
    ("options", "code", "message"),
    [
        (["query="], 2, "query='': is empty; give it a text, or an image=FILE"),
        (["query=  "], 2, "query='  ': is empty"),
        ([], 2, "query: nothing is asked; give query="),
        (["query=x", "queries=q.jsonl"], 2, "set it or queries, not both"),
        (["image=gone.png"], 1, "image gone.png does not exist"),
        (["image=/proc/self/status"], 1, "image /proc/self/status cannot be decoded"),
        (["query=x", "top_k=0"], 2, "top_k=0: 0 is too small; 1 is the least"),
        (["query=x", "top_k=many"], 2, "top_k=many: wants int"),
        (["query=x", "index=nowhere"], 1, "index=nowhere: no such folder"),
        (["query=x", "index=."], 1, "index=.: holds no index (it has no manifest.json); ret-index makes one"),
        (["query=x", "index="], 2, "index='': is empty"),
        (["query=x", "qdrant=q", "collection=c"], 2, "set it or qdrant, not both"),
        (
            ["query=x", "index=null"],
            2,
            "index=null: no index is named; give index=DIR or qdrant=URL [index-not-named]\n",
        ),
        (["image="], 2, "image='': is empty; name a file, or leave it out"),
        (["query=x", "image="], 2, "image='': is empty; name a file, or leave it out"),
        (["queries="], 2, "queries='': is empty; name a file, or leave it out"),
        (["query=x", "output="], 2, "output='': is empty; name a file, or leave it out"),
        (["query=x", "output=/tmp"], 1, "output=/tmp: is a folder; name a file in it"),
        (
            ["query=x", "output=/dev/null", "overwrite=true"],
            1,
            "output=/dev/null: is no regular file; leave output out to print",
        ),
        (["query=x", "output=/proc/nowhere/f"], 1, "output=/proc/nowhere/f: cannot be written"),
        (["queries=gone.jsonl"], 1, "gone.jsonl: no such file"),
        (["queries={files}/queries.jsonl"], 1, "names the image sub/0.png, but image_root is not set"),
        (["queries={files}/all.jsonl"], 1, "all.jsonl:1: field data_id is missing"),
    ],
)
def test_mistakes_of_a_search_are_one_line(options, code, message, index, files, call, capsys) -> None:
    assert call("search", f"index={index}", *(option.format(files=files) for option in options)) == code
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
