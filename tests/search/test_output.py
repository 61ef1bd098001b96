"""The output of ret-search."""

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

needs_run = pytest.mark.slow  # uses the session run of ret-train


@needs_run
def test_existing_output_is_not_overwritten(index: Path, tmp_path: Path, call, capsys, monkeypatch) -> None:
    search_options = (f"index={index}", "query=x", "top_k=1", "output=found.jsonl")
    assert call("search", *search_options) == 0
    before = (tmp_path / "found.jsonl").read_text()
    assert len(read(before)) == 1
    assert call("search", *search_options, "top_k=2") == 1
    captured = capsys.readouterr().err
    assert captured.endswith(" [output-exists]\n")
    assert len(captured.splitlines()) == 1
    with monkeypatch.context() as patched:
        patched.setattr(SearchFolder, "search", interrupted)
        assert call("search", *search_options, "overwrite=true") == 130
    assert [path.name for path in tmp_path.iterdir()] == ["found.jsonl"]
    assert (tmp_path / "found.jsonl").read_text() == before
    assert call("search", *search_options, "overwrite=true", "top_k=2") == 0
    assert len(read((tmp_path / "found.jsonl").read_text())) == 2


@needs_run
def test_terminal_output_is_a_table(trained: Trained, index: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "ret_lightning.commands.search", f"index={index}", "query=What is fact 7?", "top_k=3"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "60", "TERM": "xterm"},
    )
    os.close(theirs)
    displayed = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # closed by the process
            break
        if not block:
            break
        displayed += block
    assert done.wait() == 0, done.stderr.read()
    lines = displayed.decode().splitlines()
    assert all(name in lines[1] for name in ("rank", "score", "passage", "text", "image"))
    assert sum(f"{NAME}_" in line for line in lines) == 3
    assert all(len(line) <= 60 for line in lines if "\x1b" not in line)
    assert "{" not in displayed.decode()
    assert list(tmp_path.iterdir()) == []


@needs_run
def test_pipe_output_is_json_lines_only(trained: Trained, make, tmp_path: Path) -> None:
    options = ("retrieval=faiss_flat", "retrieval.factory=SQfp16", "retrieval.candidates=3")
    assert make("all.jsonl", f"checkpoint={trained.exported}", "index=of_faiss", *options) == 0
    search_options = [sys.executable, "-m", "ret_lightning.commands.search", "index=of_faiss", "query=x", "top_k=2"]
    done = subprocess.run(search_options, capture_output=True, text=True, cwd=tmp_path)  # FAISS logs how it is loaded
    assert (done.returncode, done.stderr) == (0, "")
    assert [hit["rank"] for hit in read(done.stdout)] == [1, 2]
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does after its last line
    done = subprocess.run(search_options, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_errors_while_answering_are_propagated(tmp_path: Path) -> None:
    def answers():
        yield "one"
        raise OSError(24, "Too many open files")

    with pytest.raises(OSError, match="Too many open files"):
        output.write_lines(tmp_path / "found.jsonl", answers())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError) as caught:
        output.write_lines(Path("/proc/missing/f"), ["one"])
    assert (caught.value.code, caught.value.path) == ("output-not-written", Path("/proc/missing/f"))


HITS = [Hit(1, 3.14159265, "p1", 'é "quoted"\nline', "a.png"), Hit(2, -0.5, "p2", None, None)]


def test_json_line_per_hit() -> None:
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
def test_check_output_file(name: str, overwrite: bool, code: str | None, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").touch()
    if code is None:
        output.check_output_file(tmp_path / name, overwrite)
        return
    with pytest.raises(ConfigError) as caught:
        output.check_output_file(tmp_path / name, overwrite)
    assert (caught.value.code, caught.value.path) == (code, tmp_path / name)


def test_table_escapes_markup_and_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table([Hit(1, 0.5, "[red]p", "a\x1b[31mb\n\tc", None)], "a\x07 [title]")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\x07" not in printed
    for text in ("[red]p", "a?[31mb c", "a? [title]", "0.5000"):
        assert text in printed
