"""ret-index into a folder: new, appended, interrupted, rejected."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from ret_lightning.search import index_builder
from ret_lightning.search.index_folder import SearchFolder
from tests.support.m2kr_folder import passage, write_lines
from tests.support.search_corpus import ALL, FIRST, NAME, encoded_ids, images, interrupted, interrupted_after
from tests.support.small_runs import Trained, command

pytestmark = pytest.mark.slow  # uses the session run of ret-train


def test_append_builds_index_of_all_passages(trained: Trained, index: Path, make, tmp_path: Path, call, capsys) -> None:
    small = ["retrieval=faiss_flat", "retrieval.candidates=3"]
    assert make("first.jsonl", f"checkpoint={trained.run}", "index=grown", *small) == 0
    assert make("more.jsonl", "index=grown", "append=true") == 0
    assert "5 passages to add to 7, 5 to encode" in capsys.readouterr().out
    grown, complete = SearchFolder(tmp_path / "grown"), SearchFolder(index)
    assert grown.embeddings.ids == complete.embeddings.ids
    # Different batch sizes change the rounding.
    torch.testing.assert_close(grown.embeddings.vectors, complete.embeddings.vectors, atol=1e-3, rtol=0)
    assert list(grown.records) == list(complete.records)
    assert (type(grown.index).__name__, grown.index.candidates) == ("FaissIndex", 3)
    assert {path.name for path in (tmp_path / "grown").iterdir()} == {"manifest.json", "v2", ".lock"}
    assert make("more.jsonl", "index=grown", "append=true") == 1
    error = capsys.readouterr().err
    assert "more.jsonl: 5 of 5 passages" in error
    assert "'evqa_7'" in error
    assert error.endswith("[passages-indexed-already]\n")
    assert make("more.jsonl", f"checkpoint={trained.run}", "index=grown") == 1
    error = capsys.readouterr().err
    assert "12 passages" in error
    assert error.endswith("[index-exists]\n")
    # The published folder of the same weights has the same fingerprint.
    assert call("search", "index=grown", f"checkpoint={trained.exported}", "query=x", "top_k=1") == 0


def test_interrupted_index_continues(trained: Trained, make, tmp_path: Path, call, capsys, monkeypatch) -> None:
    calls = encoded_ids(monkeypatch, index_builder)
    options = (f"checkpoint={trained.run}", "index=cut", "batch_size=2")
    with interrupted_after(2, monkeypatch, index_builder):
        assert make("all.jsonl", *options) == 130
    assert call("search", "index=cut", "query=x") == 1
    assert capsys.readouterr().err.endswith("[index-not-finished]\n")
    assert make("first.jsonl", *options) == 1
    error = capsys.readouterr().err
    assert "cut/v1 with count 12, not 7" in error
    assert error.endswith("[index-begun-otherwise]\n")
    assert make("all.jsonl", *options) == 0
    assert [len(ids) for ids in calls] == [12, 8]
    assert len(SearchFolder(tmp_path / "cut")) == ALL


@pytest.mark.parametrize("field", ["passage_text", "passage_image_path"])
@pytest.mark.parametrize("append", [False, True])
def test_edited_passages_are_encoded_again(
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
        patched.setattr(index_builder, "finish_index", interrupted)  # after everything is encoded
        assert make(edited, *options) == 130
    capsys.readouterr()
    rows[0][field] = {"passage_text": "Another fact.", "passage_image_path": "sub/1.png"}[field]
    write_lines(edited, rows)
    calls = encoded_ids(monkeypatch, index_builder)
    assert make(edited, *options) == 0
    assert [len(ids) for ids in calls] == [1]  # a part has one row here
    assert "1 passages were edited since" in "".join(capsys.readouterr())
    assert list(SearchFolder(tmp_path / "cut").records)[-FIRST].text == rows[0]["passage_text"]
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
    captured = capsys.readouterr().err
    assert f"{file}:{FIRST - 1}: image" in captured
    assert "1 more of" in captured
    assert "[image-missing]" in captured
    assert len(captured.splitlines()) == 1
    assert {file: file.read_bytes() for file in tmp_path.glob("new/**/*") if file.is_file()} == before
    write_lines(file, [*rows[:-2], last | {"passage_image_path": path.upper()}])
    assert make(file, *options) == 1
    assert f"near match: '{path}'" in capsys.readouterr().err
    write_lines(file, [*rows[:-2], last])
    assert make(file, *options) == 0


@pytest.mark.slow
def test_several_processes_build_same_index(trained: Trained, index: Path, files: Path, tmp_path: Path) -> None:
    common = (f"image_root={images(trained)}", f"index={tmp_path / 'shared'}", "processes=3", "batch_size=1")
    done = command("index", f"checkpoint={trained.run}", f"passages={files / 'first.jsonl'}", *common, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # Two of the five passages belong to one rank; a broken image of another rank is reported.
    more = files / "more.jsonl"
    broken = tmp_path / "broken.jsonl"
    broken.write_text(more.read_text().replace("evqa_11", "evqa_99").replace("sub/", "torn/"))
    (images(trained) / "torn").mkdir()
    for image in (images(trained) / "sub").iterdir():
        (images(trained) / "torn" / image.name).write_bytes(image.read_bytes()[:40])
    failed = command("index", f"passages={broken}", "append=true", *common, cwd=tmp_path)
    assert failed.returncode == 1
    assert "torn/" in failed.stderr
    assert "Traceback" not in failed.stderr
    shutil.rmtree(tmp_path / "shared/v2")
    done = command("index", f"passages={more}", "append=true", *common, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    together, alone = SearchFolder(tmp_path / "shared"), SearchFolder(index)
    assert together.embeddings.ids == alone.embeddings.ids
    torch.testing.assert_close(together.embeddings.vectors, alone.embeddings.vectors, atol=1e-3, rtol=0)
    assert list(together.records) == list(alone.records)


@pytest.mark.parametrize(
    ("rows", "options", "exit_code", "code", "location"),
    [
        ([passage(NAME, 1), passage(NAME, 2), passage(NAME, 1)], [], 1, "passage-id-twice", "p.jsonl:3"),
        ([passage(NAME, 1), "{broken"], [], 1, "not-json", "p.jsonl:2"),
        ([passage(NAME, 1)], ["image_root=null"], 1, "image-root-not-given", "p.jsonl:1"),
        ([passage(NAME, 1)], ["image_root=missing"], 1, "image-folder-missing", "p.jsonl:1"),
        ([passage(NAME, 1)], ["append=true"], 1, "index-to-append-missing", "index=new"),
        ([passage(NAME, 1)], ["passages=missing-*.jsonl"], 1, "row-pattern-without-match", "passages=missing-*.jsonl"),
        ([passage(NAME, 1)], ["checkpoint=null"], 2, "index-needs-checkpoint", "checkpoint=null"),
        ([passage(NAME, 1)], ["checkpoint=missing"], 1, "checkpoint-folder-missing", "checkpoint missing"),
        ([passage(NAME, 1)], ["index=taken"], 1, "index-folder-not-empty", "'notes.txt'"),
        ([passage(NAME, 1)], ["index=p.jsonl"], 1, "index-is-file", "index=p.jsonl"),
        ([passage(NAME, 1)], ["batch_size=0"], 2, "number-too-small", "batch_size=0"),
    ],
)
def test_index_errors_are_one_line(rows, options, exit_code, code, location, trained, tmp_path, call, capsys) -> None:
    write_lines(tmp_path / "p.jsonl", rows)
    write_lines(tmp_path / "taken/notes.txt", ["mine"])
    base = ("passages=p.jsonl", f"image_root={images(trained)}", f"checkpoint={trained.exported}", "index=new")
    assert call("index", *base, *options) == exit_code
    error = capsys.readouterr().err
    assert any(location in line and line.endswith(f"[{code}]") for line in error.splitlines()), error
    assert "Traceback" not in error
    assert not (tmp_path / "new/manifest.json").exists()


def test_concurrent_runs_are_rejected(trained: Trained, make, tmp_path: Path, capsys) -> None:
    (tmp_path / "busy").mkdir()
    with FileLock(tmp_path / "busy/.lock"):
        assert make("all.jsonl", f"checkpoint={trained.exported}", "index=busy") == 1
    assert capsys.readouterr().err.endswith("[index-locked]\n")
    assert make("all.jsonl", f"checkpoint={trained.exported}", "index=/proc/missing") == 1
    assert capsys.readouterr().err.endswith("[index-not-written]\n")


def test_failed_run_removes_new_folder(trained: Trained, make, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "mine").mkdir()
    for folder in ("new", "mine"):
        assert make(tmp_path / "empty.jsonl", f"checkpoint={trained.exported}", f"index={folder}") == 1
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_keeps_written_parts(
    trained: Trained, make, tmp_path: Path, capsys, monkeypatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    options = (f"checkpoint={trained.exported}", "index=full")
    with monkeypatch.context() as patched:
        patched.setattr(index_builder, "finish_index", fail)
        assert make("first.jsonl", *options) == 1
    error = capsys.readouterr().err
    assert "index=full: " in error
    assert error.endswith("[index-disk-full]\n")
    calls = encoded_ids(monkeypatch, index_builder)
    assert make("first.jsonl", *options) == 0
    assert calls in ([], [[]])  # all parts were kept
    assert len(SearchFolder(tmp_path / "full")) == FIRST
