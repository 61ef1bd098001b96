"""ret-index and ret-search as a user runs them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError
from ret_lightning.retrieval import EmbeddingStore, Index
from ret_lightning.search import build_index, output
from ret_lightning.search.index_folder import Manifest, SearchFolder, read_search_manifest
from tests.support.m2kr_folder import passage, query, write_lines
from tests.support.random_pools import maxsim_float64
from tests.support.small_runs import Trained, command

pytestmark = pytest.mark.slow  # they share one run of ret-train

needs_qdrant = pytest.mark.skipif(
    importlib.util.find_spec("qdrant_client") is None, reason="the extra qdrant is not installed"
)

FIRST, ALL = 7, 12
NAME = "evqa"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    rows = [passage(NAME, i) for i in range(ALL)]
    write_lines(folder / "all.jsonl", rows)
    write_lines(folder / "first.jsonl", rows[:FIRST])
    write_lines(folder / "more.jsonl", rows[FIRST:])
    queries = [query(NAME, i) for i in range(5)]
    for row in queries:
        del row["passage_id"]  # nobody knows it
    write_lines(folder / "queries.jsonl", queries)
    return folder


def images(trained: Trained) -> Path:
    return trained.root / "images/m2kr/images"


@pytest.fixture(scope="module")
def index(trained: Trained, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexes") / "index"
    done = command(
        "index",
        f"checkpoint={trained.run}",
        f"passages={files / 'all.jsonl'}",
        f"image_root={images(trained)}",
        f"index={folder}",
        cwd=folder.parent,
    )
    assert done.returncode == 0, done.stderr
    assert "12 passages, searched by ExactIndex" in done.stdout
    assert [path.name for path in folder.parent.iterdir()] == ["index"]
    return folder


@pytest.fixture
def make(trained: Trained, files: Path, call: Callable[..., int]) -> Callable[..., int]:
    def run(file: str | Path, *options: object) -> int:
        return call("index", f"passages={files / file}", f"image_root={images(trained)}", *options)

    return run


def brute_force(trained: Trained, pairs: list) -> tuple[np.ndarray, list[list[str]]]:
    """Scores and ids, best first, of the corpus for pairs of text and image, by the library's own encoding."""
    retriever = RetRetriever.from_pretrained(trained.exported)
    rows = [passage(NAME, i) for i in range(ALL)]
    pool = [(r["passage_text"], r["passage_image_path"] and images(trained) / r["passage_image_path"]) for r in rows]
    vectors = retriever.encode_passages(pool).half()
    scores = maxsim_float64(retriever.encode_queries(pairs), vectors)
    order = (-scores).argsort(axis=1, kind="stable")
    return np.take_along_axis(scores, order, 1), [[rows[i]["passage_id"] for i in line] for line in order]


def read(lines: str) -> list[dict]:
    return [json.loads(line) for line in lines.splitlines()]


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


def test_a_file_of_answers_is_not_written_over(index: Path, tmp_path: Path, call, capsys, monkeypatch) -> None:
    asked = (f"index={index}", "query=x", "top_k=1", "output=found.jsonl")
    assert call("search", *asked) == 0
    before = (tmp_path / "found.jsonl").read_text()
    assert len(read(before)) == 1
    assert call("search", *asked, "top_k=2") == 1
    said = capsys.readouterr().err
    assert said.endswith(" [output-exists]\n")
    assert len(said.splitlines()) == 1
    with monkeypatch.context() as patched:
        patched.setattr(SearchFolder, "search", interrupted)
        assert call("search", *asked, "overwrite=true") == 130
    assert [path.name for path in tmp_path.iterdir()] == ["found.jsonl"]
    assert (tmp_path / "found.jsonl").read_text() == before
    assert call("search", *asked, "overwrite=true", "top_k=2") == 0
    assert len(read((tmp_path / "found.jsonl").read_text())) == 2


def test_a_terminal_gets_a_table(trained: Trained, index: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "ret_lightning.commands.search", f"index={index}", "query=What is fact 7?", "top_k=3"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "60", "TERM": "xterm"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        shown += piece
    assert done.wait() == 0, done.stderr.read()
    lines = shown.decode().splitlines()
    assert all(name in lines[1] for name in ("rank", "score", "passage", "text", "image"))
    assert sum(f"{NAME}_" in line for line in lines) == 3
    assert all(len(line) <= 60 for line in lines if "\x1b" not in line)
    assert "{" not in shown.decode()
    assert list(tmp_path.iterdir()) == []


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


def test_a_pipe_gets_json_lines_and_nothing_else(trained: Trained, make, tmp_path: Path) -> None:
    options = ("retrieval=faiss_flat", "retrieval.factory=SQfp16", "retrieval.candidates=3")
    assert make("all.jsonl", f"checkpoint={trained.exported}", "index=of_faiss", *options) == 0
    asked = [sys.executable, "-m", "ret_lightning.commands.search", "index=of_faiss", "query=x", "top_k=2"]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=tmp_path)  # FAISS tells at length how it is loaded
    assert (done.returncode, done.stderr) == (0, "")
    assert [hit["rank"] for hit in read(done.stdout)] == [1, 2]
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does when it has seen enough
    done = subprocess.run(asked, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


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


def test_what_fails_while_answering_is_no_fault_of_the_output(tmp_path: Path) -> None:
    def answers():
        yield "one"
        raise OSError(24, "Too many open files")

    with pytest.raises(OSError, match="Too many open files"):
        output.write_lines(tmp_path / "found.jsonl", answers())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"output=/proc/nowhere/f: cannot be written"):
        output.write_lines(Path("/proc/nowhere/f"), ["one"])


def test_adding_passages_gives_the_index_of_all(
    trained: Trained, index: Path, make, tmp_path: Path, call, capsys
) -> None:
    small = ["retrieval=faiss_flat", "retrieval.candidates=3"]
    assert make("first.jsonl", f"checkpoint={trained.run}", "index=grown", *small) == 0
    assert make("more.jsonl", "index=grown", "append=true") == 0
    assert "5 passages for the 7 that are there, 5 to encode" in capsys.readouterr().out
    grown, whole = SearchFolder(tmp_path / "grown"), SearchFolder(index)
    assert grown.embeddings.ids == whole.embeddings.ids
    # Batches of other sizes differ by rounding.
    torch.testing.assert_close(grown.embeddings.vectors, whole.embeddings.vectors, atol=1e-3, rtol=0)
    assert list(grown.shown) == list(whole.shown)
    assert (type(grown.index).__name__, grown.index.candidates) == ("FaissIndex", 3)  # as it was made
    assert {path.name for path in (tmp_path / "grown").iterdir()} == {"manifest.json", "v2", ".lock"}
    assert make("more.jsonl", "index=grown", "append=true") == 1
    assert "more.jsonl: 5 of 5 passages are in the index already, the first is 'evqa_7' at" in capsys.readouterr().err
    assert make("more.jsonl", f"checkpoint={trained.run}", "index=grown") == 1
    assert "holds an index of 12 passages; append=true adds to it" in capsys.readouterr().err
    # The published folder of the same weights is the same model.
    assert call("search", "index=grown", f"checkpoint={trained.exported}", "query=x", "top_k=1") == 0


def test_an_interrupted_run_goes_on(trained: Trained, make, tmp_path: Path, call, capsys, monkeypatch) -> None:
    original = build_index.encoded
    counts = []

    def cut_off(retriever, rows, *options, **more):
        counts.append(len(rows))
        for number, vectors in enumerate(original(retriever, rows, *options, **more)):
            if number == 2 and len(counts) == 1:
                raise KeyboardInterrupt
            yield vectors

    monkeypatch.setattr(build_index, "encoded", cut_off)
    options = (f"checkpoint={trained.run}", "index=cut", "batch_size=2")
    assert make("all.jsonl", *options) == 130
    assert call("search", "index=cut", "query=x") == 1
    assert "index=cut: the index is not finished; run ret-index again" in capsys.readouterr().err
    assert make("first.jsonl", *options) == 1
    assert (
        "an interrupted run began cut/v1 with count 12, not 7; finish it with the passages" in capsys.readouterr().err
    )
    assert make("all.jsonl", *options) == 0
    assert counts == [12, 8]
    assert len(SearchFolder(tmp_path / "cut")) == ALL


@pytest.mark.parametrize("field", ["passage_text", "passage_image_path"])
@pytest.mark.parametrize("append", [False, True])
def test_passages_edited_after_an_interruption_are_encoded_again(
    append, field, trained: Trained, make, tmp_path: Path, capsys, monkeypatch
) -> None:
    options = [f"checkpoint={trained.exported}", "index=cut"]
    if append:
        assert make("more.jsonl", *options) == 0
        options.append("append=true")
    edited = tmp_path / "edited.jsonl"
    rows = [passage(NAME, i) for i in range(FIRST)]
    write_lines(edited, rows)
    with monkeypatch.context() as patched:
        patched.setattr(build_index, "finish_index", interrupted)  # all is encoded by then
        assert make(edited, *options) == 130
    capsys.readouterr()
    rows[0][field] = {"passage_text": "Another fact.", "passage_image_path": "sub/1.png"}[field]
    write_lines(edited, rows)
    counts = []
    original = build_index.encoded
    monkeypatch.setattr(
        build_index, "encoded", lambda model, rows, *more: (counts.append(len(rows)), original(model, rows, *more))[1]
    )
    assert make(edited, *options) == 0
    assert counts == [1]  # a part has one row here
    assert "1 passages were edited since" in "".join(capsys.readouterr())
    assert list(SearchFolder(tmp_path / "cut").shown)[-FIRST].text == rows[0]["passage_text"]
    assert not list(tmp_path.glob("cut/*/row_digests.npy"))
    assert make(edited, f"checkpoint={trained.exported}", "index=other") == 0
    found, expected = (SearchFolder(tmp_path / name).embeddings.vectors[-FIRST:] for name in ("cut", "other"))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("append", [False, True])
def test_missing_image_is_found_before_encoding(append, trained: Trained, make, tmp_path: Path, capsys) -> None:
    options = [f"checkpoint={trained.exported}", "index=new", "batch_size=1"]
    if append:
        assert make("more.jsonl", *options) == 0
        options.append("append=true")
    before = {file: file.read_bytes() for file in tmp_path.glob("new/**/*") if file.is_file()}
    rows = [passage(NAME, i) for i in range(FIRST)]
    path, last = rows[1]["passage_image_path"], rows[-1]
    rows[-1] = last | {"passage_image_path": path.upper()}
    rows[-2] = rows[-2] | {"passage_image_path": "gone.png"}
    file = tmp_path / "rows.jsonl"
    write_lines(file, rows)
    capsys.readouterr()
    assert make(file, *options) == 1
    said = capsys.readouterr().err
    assert f"{file}:{FIRST - 1}: image" in said
    assert "1 more of" in said
    assert "[image-missing]" in said
    assert len(said.splitlines()) == 1
    assert {file: file.read_bytes() for file in tmp_path.glob("new/**/*") if file.is_file()} == before
    write_lines(file, [*rows[:-2], last | {"passage_image_path": path.upper()}])
    assert make(file, *options) == 1
    assert f"near match: '{path}'" in capsys.readouterr().err
    write_lines(file, [*rows[:-2], last])
    assert make(file, *options) == 0


def interrupted(*_: object, **__: object) -> None:
    """As by Ctrl-C; a signal would not reach a test that runs in a process of xdist's."""
    raise KeyboardInterrupt


@pytest.mark.slow
def test_several_processes_make_the_same_index(trained: Trained, index: Path, files: Path, tmp_path: Path) -> None:
    common = (f"image_root={images(trained)}", f"index={tmp_path / 'shared'}", "processes=3", "batch_size=1")
    done = command("index", f"checkpoint={trained.run}", f"passages={files / 'first.jsonl'}", *common, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # Two of the five passages to add belong to one rank; a broken image of another's is told as ever.
    lost = files / "more.jsonl"
    broken = tmp_path / "broken.jsonl"
    broken.write_text(lost.read_text().replace("evqa_11", "evqa_99").replace("sub/", "torn/"))
    (images(trained) / "torn").mkdir()
    for image in (images(trained) / "sub").iterdir():
        (images(trained) / "torn" / image.name).write_bytes(image.read_bytes()[:40])
    failed = command("index", f"passages={broken}", "append=true", *common, cwd=tmp_path)
    assert failed.returncode == 1
    assert "torn/" in failed.stderr
    assert "Traceback" not in failed.stderr
    shutil.rmtree(tmp_path / "shared/v2")
    done = command("index", f"passages={lost}", "append=true", *common, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    together, alone = SearchFolder(tmp_path / "shared"), SearchFolder(index)
    assert together.embeddings.ids == alone.embeddings.ids
    torch.testing.assert_close(together.embeddings.vectors, alone.embeddings.vectors, atol=1e-3, rtol=0)
    assert list(together.shown) == list(alone.shown)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("v1/embeddings/vectors.f16", flip, "the checksum of rows"),
        ("v1/embeddings/vectors.f16", cut, "1536 belong there"),
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


def test_an_index_of_another_checkpoint_is_told(trained: Trained, index: Path, tmp_path: Path, call, capsys) -> None:
    retriever = RetRetriever.from_pretrained(trained.exported)
    with torch.no_grad():
        retriever.passage_tower.output.weight[0, 0] += 1e-3
    retriever.save_pretrained(tmp_path / "other")
    assert call("search", f"index={index}", "query=x", f"checkpoint={tmp_path / 'other'}") == 1
    assert "the index is of another checkpoint than" in capsys.readouterr().err
    copy = Path(shutil.copytree(index, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["model"]["source"] = str(tmp_path / "gone.ckpt")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert call("search", f"index={copy}", "query=x") == 1
    assert "gone.ckpt, which is not there any more; checkpoint=... tells where it is now" in capsys.readouterr().err
    assert call("search", f"index={copy}", "query=x", f"checkpoint={trained.run}") == 0


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
        (["queries={files}/queries.jsonl"], 1, "names the image sub/0.png; image_root=DIR tells where images are"),
        (["queries={files}/all.jsonl"], 1, "all.jsonl:1: field data_id is missing"),
    ],
)
def test_mistakes_of_a_search_are_one_line(options, code, message, index, files, call, capsys) -> None:
    assert call("search", f"index={index}", *(option.format(files=files) for option in options)) == code
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("rows", "options", "code", "message"),
    [
        (
            [passage(NAME, 1), passage(NAME, 2), passage(NAME, 1)],
            [],
            1,
            "p.jsonl:3: passage_id 'evqa_1' comes a second time",
        ),
        ([passage(NAME, 1), "{broken"], [], 1, "p.jsonl:2: not JSON"),
        ([passage(NAME, 1)], ["image_root=null"], 1, "p.jsonl:1 names the image sub/1.png; image_root=DIR tells where"),
        (
            [passage(NAME, 1)],
            ["image_root=nowhere"],
            1,
            "p.jsonl:1: image folder nowhere does not exist",
        ),
        ([passage(NAME, 1)], ["append=true"], 1, "index=new holds no finished index to add to"),
        ([passage(NAME, 1)], ["passages=gone-*.jsonl"], 1, "passages=gone-*.jsonl matches no file"),
        ([passage(NAME, 1)], ["checkpoint=null"], 2, "checkpoint=null: a new index needs one"),
        ([passage(NAME, 1)], ["checkpoint=nowhere"], 1, "checkpoint nowhere: no such folder"),
        ([passage(NAME, 1)], ["index=taken"], 1, "index=taken: holds 'notes.txt', which is no part of an index"),
        ([passage(NAME, 1)], ["index=p.jsonl"], 1, "index=p.jsonl: a file of that name is in the way"),
        ([passage(NAME, 1)], ["batch_size=0"], 2, "batch_size=0: 0 is too small"),
    ],
)
def test_mistakes_of_an_index_are_one_line(rows, options, code, message, trained, tmp_path, call, capsys) -> None:
    write_lines(tmp_path / "p.jsonl", rows)
    write_lines(tmp_path / "taken/notes.txt", ["mine"])
    base = ("passages=p.jsonl", f"image_root={images(trained)}", f"checkpoint={trained.exported}", "index=new")
    assert call("index", *base, *options) == code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "new/manifest.json").exists()


@pytest.mark.parametrize(
    "place",
    [["index=new", "processes=2"], pytest.param(["qdrant=store", "collection=new"], marks=needs_qdrant)],
)
def test_passages_of_nothing_are_told_and_kept(place, trained: Trained, make, tmp_path: Path, call, capsys) -> None:
    rows = [passage(NAME, i) for i in range(5)]
    for row in rows[1:3]:
        row["passage_text"] = row["passage_image_path"] = None
    rows[4]["passage_text"] = None  # has an image
    write_lines(tmp_path / "p.jsonl", rows)
    assert make(tmp_path / "p.jsonl", f"checkpoint={trained.exported}", *place) == 0
    said = capsys.readouterr()
    warning = "2 of 5 passages have neither text nor image, the first is 'evqa_1' at"
    assert (said.out + said.err).count(warning) == 1
    assert f"{tmp_path / 'p.jsonl'}:2; they are kept" in said.out
    assert call("search", place[0], *(part for part in place if "collection" in part), "query=x") == 0
    assert len(read(capsys.readouterr().out)) == 5


def test_two_at_once_are_told(trained: Trained, make, tmp_path: Path, capsys) -> None:
    (tmp_path / "busy").mkdir()
    with FileLock(tmp_path / "busy/.lock"):
        assert make("all.jsonl", f"checkpoint={trained.exported}", "index=busy") == 1
    assert "index=busy: another ret-index is writing into it" in capsys.readouterr().err
    assert make("all.jsonl", f"checkpoint={trained.exported}", "index=/proc/nowhere") == 1
    assert "index=/proc/nowhere: cannot be written" in capsys.readouterr().err


def test_a_folder_that_nothing_came_of_is_not_left_behind(trained: Trained, make, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "mine").mkdir()
    for folder in ("new", "mine"):
        assert make(tmp_path / "empty.jsonl", f"checkpoint={trained.exported}", f"index={folder}") == 1
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "mine").exists()


def test_the_folder_is_read_as_a_library_too(index: Path) -> None:
    store = EmbeddingStore.open(index / "v1/embeddings")
    searched = Index.load(index / "v1/search", store.embeddings)
    ranking = searched.search(store.embeddings.vectors.float(), 3)
    assert ranking.rows[:, 0].tolist() == list(range(ALL))  # every passage is nearest to itself


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


@needs_qdrant
def test_an_interrupted_run_into_qdrant_goes_on(trained: Trained, make, call, capsys, monkeypatch) -> None:
    from ret_lightning.search import qdrant

    original, counts = qdrant.encoded, []

    def cut_off(retriever, rows, *options, **more):
        counts.append(len(rows))
        for number, vectors in enumerate(original(retriever, rows, *options, **more)):
            if number == 2 and len(counts) == 1:
                raise KeyboardInterrupt
            yield vectors

    monkeypatch.setattr(qdrant, "encoded", cut_off)
    options = (f"checkpoint={trained.run}", "qdrant=store", "collection=cut", "batch_size=2")
    assert make("all.jsonl", *options) == 130
    assert call("search", "qdrant=store", "collection=cut", "query=x") == 1
    assert "collection=cut: is not finished; run ret-index again" in capsys.readouterr().err
    assert make("first.jsonl", *options, "append=true") == 1
    assert "append=true: collection=cut is not finished, so nothing can be added" in capsys.readouterr().err
    assert make("all.jsonl", *options) == 0
    assert counts == [12, 8]
    capsys.readouterr()
    assert call("search", "qdrant=store", "collection=cut", "query=x", "top_k=20") == 0
    assert len(read(capsys.readouterr().out)) == ALL


@pytest.fixture
def cut_off(monkeypatch) -> Callable[[int], AbstractContextManager]:
    """Within it ret-index is interrupted after so many batches of what goes into Qdrant."""
    from ret_lightning.search import qdrant

    original = qdrant.encoded

    @contextmanager
    def after(batches: int) -> Iterator[None]:
        def encoded(*options, **more):
            yield from itertools.islice(original(*options, **more), batches)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(qdrant, "encoded", encoded)
            yield

    return after


@needs_qdrant
def test_what_is_in_qdrant_in_the_end_is_what_the_rows_say(
    trained: Trained, make, call, tmp_path: Path, capsys, cut_off, monkeypatch
) -> None:
    from ret_lightning.search import qdrant

    file, rows = tmp_path / "edited.jsonl", [passage(NAME, i) for i in range(FIRST)]
    there = (f"checkpoint={trained.exported}", "batch_size=2")
    store = ("qdrant=store", "collection=cut")
    write_lines(file, rows)
    with cut_off(3):  # six rows
        assert make(file, *there, *store) == 130
    rows[4]["passage_text"], rows[0]["passage_image_path"] = "Another fact.", "sub/1.png"  # both were encoded
    rows[6]["passage_text"] = "A text that was not encoded by then."
    rows = [rows[6], *rows[:6]]  # in other places
    write_lines(file, rows)
    original, encoded = qdrant.encoded, []
    monkeypatch.setattr(
        qdrant,
        "encoded",
        lambda r, p, *more, **named: encoded.extend(q.passage_id for q in p) or original(r, p, *more, **named),
    )
    assert make(file, *there, *store) == 0
    assert encoded == ["evqa_6", "evqa_0", "evqa_4"]
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
    trained: Trained, make, call, tmp_path: Path, capsys, cut_off
) -> None:
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
    with cut_off(4):
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
@pytest.mark.parametrize("name", ["index", "search"])
def test_what_can_be_no_collection_is_told(
    trained: Trained, make, call, index, tmp_path: Path, capsys, name: str
) -> None:
    (tmp_path / "file").write_text("")
    for place, expected, message in (
        (("qdrant=file", "collection=c"), 1, "qdrant=file: is a file; name a folder, or the URL of a server"),
        (("qdrant=store", "collection=a/b"), 2, "is no name that Qdrant takes: at most 255 letters, none of < >"),
        (("qdrant=/proc/nowhere", "collection=c"), 1, "qdrant=/proc/nowhere: "),
        ((f"qdrant={index}", "collection=c"), 1, "'manifest.json', and nothing of Qdrant; choose another folder"),
    ):
        if name == "index":
            code = make("first.jsonl", f"checkpoint={trained.exported}", *place)
        else:
            code = call("search", *place, "query=x")
        assert code == expected
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == expected  # one line more for a mistake in the config
    assert not (tmp_path / "store").exists()
    assert not (index / "meta.json").exists()


def test_qdrant_that_is_not_installed_is_told(call, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    assert call("search", "qdrant=http://localhost:6333", "collection=c", "query=x") == 1
    assert "needs the package qdrant-client: pip install 'ret_lightning[qdrant]'" in capsys.readouterr().err
