"""What ret-search prints and writes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ret_lightning.errors import ConfigError
from ret_lightning.search import output
from ret_lightning.search.hits import Hit
from ret_lightning.search.index_folder import SearchFolder
from tests.support.search_corpus import NAME, interrupted, read
from tests.support.small_runs import Trained

needs_run = pytest.mark.slow  # of ret-train, which all of them share


@needs_run
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


@needs_run
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


@needs_run
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


def test_what_fails_while_answering_is_no_fault_of_the_output(tmp_path: Path) -> None:
    def answers():
        yield "one"
        raise OSError(24, "Too many open files")

    with pytest.raises(OSError, match="Too many open files"):
        output.write_lines(tmp_path / "found.jsonl", answers())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"output=/proc/nowhere/f: cannot be written"):
        output.write_lines(Path("/proc/nowhere/f"), ["one"])


HITS = [Hit(1, 3.14159265, "p1", 'é "quoted"\nline', "a.png"), Hit(2, -0.5, "p2", None, None)]


def test_a_line_of_json_per_hit() -> None:
    lines = read("\n".join(output.json_lines([("q", HITS), (None, HITS[:1]), ("none", [])])))
    assert lines == [
        {"data_id": "q", "rank": 1, "score": 3.141593, "passage_id": "p1", "text": HITS[0].text, "image_path": "a.png"},
        {"data_id": "q", "rank": 2, "score": -0.5, "passage_id": "p2", "text": None, "image_path": None},
        {"rank": 1, "score": 3.141593, "passage_id": "p1", "text": HITS[0].text, "image_path": "a.png"},
    ]


@pytest.mark.parametrize(
    ("name", "overwrite", "code"),
    [
        ("new.jsonl", False, None),
        ("old.jsonl", True, None),
        ("old.jsonl", False, "output-exists"),
        (".", True, "output-is-folder"),
        ("/dev/null", True, "output-not-regular"),
    ],
)
def test_outputs_that_may_not_be_replaced(name: str, overwrite: bool, code: str | None, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").touch()
    if code is None:
        output.refuse_existing_output(tmp_path / name, overwrite)
        return
    with pytest.raises(ConfigError) as caught:
        output.refuse_existing_output(tmp_path / name, overwrite)
    assert (caught.value.code, caught.value.path) == (code, tmp_path / name)


def test_table_obeys_neither_markup_nor_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table([Hit(1, 0.5, "[red]p", "a\x1b[31mb\n\tc", None)], "a\x07 [title]")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\x07" not in printed
    for text in ("[red]p", "a?[31mb c", "a? [title]", "0.5000"):
        assert text in printed
