"""ret-index into a folder: new, added to, interrupted, refused."""

from __future__ import annotations

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

pytestmark = pytest.mark.slow  # they share one run of ret-train


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
    calls = encoded_ids(monkeypatch, index_builder)
    options = (f"checkpoint={trained.run}", "index=cut", "batch_size=2")
    with interrupted_after(2, monkeypatch, index_builder):
        assert make("all.jsonl", *options) == 130
    assert call("search", "index=cut", "query=x") == 1
    assert "index=cut: the index is not finished; run ret-index again" in capsys.readouterr().err
    assert make("first.jsonl", *options) == 1
    assert (
        "an interrupted run began cut/v1 with count 12, not 7; finish it with the passages" in capsys.readouterr().err
    )
    assert make("all.jsonl", *options) == 0
    assert [len(ids) for ids in calls] == [12, 8]
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
        patched.setattr(index_builder, "finish_index", interrupted)  # all is encoded by then
        assert make(edited, *options) == 130
    capsys.readouterr()
    rows[0][field] = {"passage_text": "Another fact.", "passage_image_path": "sub/1.png"}[field]
    write_lines(edited, rows)
    calls = encoded_ids(monkeypatch, index_builder)
    assert make(edited, *options) == 0
    assert [len(ids) for ids in calls] == [1]  # a part has one row here
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
        ([passage(NAME, 1)], ["image_root=null"], 1, "p.jsonl:1 names the image sub/1.png, but image_root is not set"),
        (
            [passage(NAME, 1)],
            ["image_root=nowhere"],
            1,
            "p.jsonl:1: image folder nowhere does not exist",
        ),
        ([passage(NAME, 1)], ["append=true"], 1, "index=new holds no finished index to add to"),
        ([passage(NAME, 1)], ["passages=gone-*.jsonl"], 1, "passages=gone-*.jsonl matches no file"),
        ([passage(NAME, 1)], ["checkpoint=null"], 2, "checkpoint=null: a new index needs one"),
        ([passage(NAME, 1)], ["checkpoint=nowhere"], 1, "checkpoint nowhere: the folder does not exist"),
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
