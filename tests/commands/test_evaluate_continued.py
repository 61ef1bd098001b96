"""ret-evaluate, killed in the midst of encoding and given again: the same files, and nothing encoded twice."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
import torch

from ret_lightning.evaluation import stored_sink
from ret_lightning.evaluation.stored_sink import StoredSink
from ret_lightning.models import RetRetriever
from ret_lightning.retrieval import EmbeddingStore
from ret_lightning.retrieval.store.embedding_store import StoreWriter
from ret_lightning.runtime.lock import alone_in
from tests.support import processes
from tests.support.m2kr_folder import PASSAGES, SUBSETS, passage, query
from tests.support.small_runs import Trained, contents, evaluate, one_thread

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process"),
]

ROWS = 2 * PASSAGES * len(SUBSETS)  # of all pools and files of queries
# Parts of 5, 5 and 2 rows: of wit its passages and queries, and the first part of infoseek's passages.
KILLED_AFTER, ENCODED = 7, 12 + 12 + 5

# ret-evaluate as it is, but that it notes how many rows it encodes, and kills itself when so many parts are on disk.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from ret_lightning.commands.evaluate import main
from ret_lightning.models import RetRetriever
from ret_lightning.retrieval.store.embedding_store import StoreWriter

encode, write, last = RetRetriever.encode, StoreWriter._write, int(sys.argv.pop(1))
rows, parts = Path(sys.argv.pop(1)), 0

def counted(self, side, inputs, *others, **named):
    with rows.open("a") as file:
        file.write(f"{len(inputs)}\\n")
    return encode(self, side, inputs, *others, **named)

def deadly(self, part, *content):
    global parts
    write(self, part, *content)
    parts += 1
    if parts == last:
        os.kill(os.getpid(), signal.SIGKILL)

RetRetriever.encode, StoreWriter._write = counted, deadly
main()
"""


def options(trained: Trained, folder: Path, *more: str) -> list[str]:
    return [
        f"data.root={trained.root}", "data.num_workers=0", "data.eval_batch_size=5", f"checkpoint={trained.run}",
        f"output_dir={folder}", *more,
    ]  # fmt: skip


def noted(folder: Path, rows: Path, *arguments: str, kill_after: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(kill_after), str(rows), *arguments]
    return processes.run(command, folder.parent, one_thread())


def count(rows: Path) -> int:
    return sum(map(int, rows.read_text().split()))


@pytest.fixture(scope="module")
def undisturbed(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "one"
    done = evaluate(trained, *options(trained, folder, "keep_embeddings=true"), cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def killed(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "cut"
    folder.parent.mkdir(exist_ok=True)
    rows = folder.parent / "rows"
    done = noted(folder, rows, *options(trained, folder), kill_after=KILLED_AFTER)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert count(rows) == ENCODED
    assert not (folder / "metrics.json").exists()
    assert len(list((folder / "embeddings").rglob("parts/*.json"))) == KILLED_AFTER
    return folder


def copied(killed: Path, to: Path) -> Path:
    return Path(shutil.copytree(killed, to / "again"))


def log_of(folder: Path) -> str:
    return (folder / "ret-evaluate.log").read_text()


def embeddings(folder: Path) -> dict[str, bytes]:
    below = folder / "embeddings"
    return {str(path.relative_to(below)): path.read_bytes() for path in below.rglob("*") if path.is_file()}


def test_it_goes_on_where_it_was_killed(trained: Trained, killed: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder, rows = copied(killed, tmp_path), tmp_path / "rows"
    done = noted(folder, rows, *options(trained, folder))
    assert done.returncode == 0, done.stderr
    assert count(rows) == ROWS - ENCODED
    assert contents(folder) == contents(undisturbed)
    assert "wit: 12 of 12 queries are already encoded" in log_of(folder)
    assert "infoseek: 5 of 12 passages are already encoded" in log_of(folder)
    assert json.loads((folder / "timings.json").read_text())["encoded_before"] == ENCODED
    assert not (folder / "embeddings").exists()


def test_two_ranks_go_on_where_one_was_killed(
    trained: Trained, killed: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = copied(killed, tmp_path)
    more = ("trainer=ddp_cpu", "keep_embeddings=true", "data.num_workers=1")
    done = evaluate(trained, *options(trained, folder, *more), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "infoseek: 5 of 12 passages are already encoded" in log_of(folder)
    assert contents(folder) == contents(undisturbed)
    assert embeddings(folder) == embeddings(undisturbed)


def test_one_goes_on_where_two_ranks_were_killed(trained: Trained, undisturbed: Path, tmp_path: Path) -> None:
    """Only the first rank is killed; the other one ends with it. How far that one came is for the notes to tell."""
    folder, rows = tmp_path / "two", tmp_path / "rows"
    done = noted(folder, rows, *options(trained, folder, "trainer=ddp_cpu"), kill_after=3)
    assert done.returncode == -signal.SIGKILL, done.stderr  # and nobody holds its standard output any more
    sizes = (5, 5, 2)
    there = sum(sizes[int(note.stem)] for note in (folder / "embeddings").rglob("parts/*.json"))
    assert 6 <= there < ROWS
    rows.unlink()
    done = noted(folder, rows, *options(trained, folder))
    assert done.returncode == 0, done.stderr
    assert count(rows) == ROWS - there
    assert contents(folder) == contents(undisturbed)


def test_a_part_that_was_torn_is_encoded_again(
    trained: Trained, killed: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder, rows = copied(killed, tmp_path), tmp_path / "rows"
    vectors = folder / "embeddings/wit/passages/vectors.f16"
    content = bytearray(vectors.read_bytes())
    content[0] ^= 1  # of the first part, of five rows
    vectors.write_bytes(content)
    done = noted(folder, rows, *options(trained, folder))
    assert done.returncode == 0, done.stderr
    assert count(rows) == ROWS - ENCODED + 5
    assert contents(folder) == contents(undisturbed)


def test_killed_while_it_searches_it_encodes_nothing_again(trained: Trained, undisturbed: Path, tmp_path: Path) -> None:
    """What an evaluation leaves that was killed after the last part: all embeddings, and no metrics."""
    folder, rows = tmp_path / "all", tmp_path / "rows"
    shutil.copytree(undisturbed / "embeddings", folder / "embeddings")
    done = noted(folder, rows, *options(trained, folder))
    assert done.returncode == 0, done.stderr
    assert count(rows) == 1  # Lightning wants a batch, and gets one of one row, whose vectors are left
    assert contents(folder) == contents(undisturbed)


def test_kept_embeddings_can_be_read(trained: Trained, undisturbed: Path) -> None:
    retriever = RetRetriever.from_pretrained(trained.exported)
    images = trained.root / "images/m2kr/images"

    def pair(row: dict, *texts: str) -> tuple[str | None, Path | None]:
        text = " ".join(row[name] for name in texts if row[name]) or None
        path = row["passage_image_path" if "passage_text" in row else "image_path"]
        return text, path and images / path

    for subset in SUBSETS:
        passages = EmbeddingStore.open(undisturbed / f"embeddings/{subset}/passages").embeddings
        queries = EmbeddingStore.open(undisturbed / f"embeddings/{subset}/queries").embeddings
        rows = [passage(subset, i) for i in range(PASSAGES)]
        assert passages.ids == tuple(str(row["passage_id"]) for row in rows)
        assert (passages.vectors.dtype, queries.vectors.dtype) == (torch.float16, torch.float32)
        expected = retriever.encode_passages([pair(row, "passage_text") for row in rows], num_workers=0)
        torch.testing.assert_close(passages.vectors.float(), expected, atol=1e-3, rtol=0)
        asked = [query(subset, i) for i in range(PASSAGES)]
        expected = retriever.encode_queries([pair(row, "instruction", "question") for row in asked], num_workers=0)
        torch.testing.assert_close(queries.vectors, expected, atol=1e-5, rtol=0)


def test_another_checkpoint_or_pool_is_refused(
    trained: Trained, killed: Path, tmp_path: Path, call, capsys: pytest.CaptureFixture
) -> None:
    folder = copied(killed, tmp_path)
    before, config = embeddings(folder), (folder / "config.yaml").read_text()
    other = RetRetriever.from_pretrained(trained.exported)
    with torch.no_grad():
        other.passage_tower.start += 1e-3
    other.save_pretrained(tmp_path / "other")
    corpus = Path(shutil.copytree(trained.root, tmp_path / "m2kr"))
    file = corpus / "jsonl/m2kr/passages/wit_passages_test.jsonl"
    file.write_text(file.read_text().replace("Fact 1:", "Fact one:"))
    for change, message in (
        ((f"checkpoint={tmp_path / 'other'}",), "checkpoint fingerprint"),
        ((f"data.root={corpus}",), "texts and images"),
        (("split=val", "data.validation=test"), "split 'test', not 'val'"),
    ):
        assert call("evaluate", *options(trained, folder, *change)) == 1
        said = capsys.readouterr().err
        assert (
            f"ret-evaluate: {folder}/embeddings: contains passages of wit from another evaluation, with {message}"
            in said
        )
        assert "delete this folder, or choose another output_dir" in said
        assert "Traceback" not in said
        assert embeddings(folder) == before
        assert (folder / "config.yaml").read_text() == config
    # What ret-export makes of a checkpoint is the same model.
    assert call("evaluate", *options(trained, folder, f"checkpoint={trained.exported}")) == 0
    assert "5 of 12 passages are already encoded" in log_of(folder)


def test_a_full_disk_is_one_line_and_keeps_what_is_there(
    trained: Trained, undisturbed: Path, tmp_path: Path, call, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    folder, write = tmp_path / "full", StoreWriter._write

    def full(self: StoreWriter, *part: Any) -> None:
        if self._plan.dtype == "float32":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, *part)

    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "_write", full)
        assert call("evaluate", *options(trained, folder)) == 1
    said = capsys.readouterr().err
    assert f"ret-evaluate: {folder}: the disk is full" in said
    assert "what was encoded is kept" in said
    assert said.strip().endswith("[disk-full]")
    assert "Traceback" not in said
    assert call("evaluate", *options(trained, folder)) == 0
    assert "wit: 12 of 12 passages are already encoded" in log_of(folder)
    assert contents(folder) == contents(undisturbed)


def test_images_that_cannot_be_read_are_counted_and_read_again(
    trained: Trained, undisturbed: Path, tmp_path: Path, call, capsys: pytest.CaptureFixture
) -> None:
    """Given again, the command neither forgets them nor takes vectors for good that were made without them."""
    corpus, folder = Path(shutil.copytree(trained.root, tmp_path / "m2kr")), tmp_path / "out"
    image = corpus / "images/m2kr/images/sub/3.png"
    content = image.read_bytes()
    image.unlink()
    skip = (*options(trained, folder), f"data.root={corpus}", "data.on_bad_row=skip")
    most = (
        "wit: the images of the test queries: 1 of 12 rows (1 missing_image) are bad, more than data.max_bad_fraction"
    )
    for _ in range(2):
        assert call("evaluate", *skip) == 1
        assert most in capsys.readouterr().err
        assert not list(folder.rglob("manifest.json"))
    assert "12 of 12 queries are already encoded" in log_of(folder)  # the image was tried, and nothing encoded again
    assert call("evaluate", *skip, "data.on_bad_row=raise") == 1
    assert "3.png" in capsys.readouterr().err
    # Taken as they are: all stores are finished, and it is killed before it has the metrics.
    assert call("evaluate", *skip, "data.max_bad_fraction=0.1", "keep_embeddings=true") == 0
    assert "wit: the images of the test queries: 1 of 12 rows (1 missing_image) cannot be read" in log_of(folder)
    assert contents(folder) != contents(undisturbed)
    (folder / "metrics.json").unlink()
    assert call("evaluate", *skip) == 1
    assert most in capsys.readouterr().err
    image.write_bytes(content)
    assert call("evaluate", *skip) == 0
    assert contents(folder) == contents(undisturbed)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux which files are mapped")
@pytest.mark.parametrize("retrieval", ["exact", "faiss_flat"])
def test_nothing_is_mapped_any_more_when_it_is_deleted(
    trained: Trained, tmp_path: Path, call, monkeypatch, retrieval: str
) -> None:
    """NFS would keep the files, and the folder with them."""
    folder, mapped, rmtree, complete = tmp_path / "out", {}, shutil.rmtree, StoredSink._finish

    def maps() -> list[str]:
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{folder}/embeddings" in line]

    def completed(self: StoredSink) -> None:
        complete(self)
        mapped["complete"] = len(maps())

    def deleted(path: Path, **options: Any) -> None:
        mapped[path.name] = len(maps())
        rmtree(path, **options)

    monkeypatch.setattr(StoredSink, "_finish", completed)
    monkeypatch.setattr(stored_sink, "shutil", SimpleNamespace(rmtree=deleted))
    assert call("evaluate", *options(trained, folder, "data.subsets=[wit]", f"retrieval={retrieval}")) == 0
    assert mapped["complete"] >= 2
    assert mapped["embeddings"] == 0
    assert not (folder / "embeddings").exists()


@pytest.mark.parametrize(("former", "now", "there"), [(False, False, False), (True, False, True), (False, True, True)])
def test_embeddings_beside_metrics_go_where_nobody_wanted_to_keep_them(
    trained: Trained, killed: Path, tmp_path: Path, call, capsys, former: bool, now: bool, there: bool
) -> None:
    """A kill between metrics.json and their end leaves them in a folder that no evaluation takes any more."""
    folder = copied(killed, tmp_path)
    config = (folder / "config.yaml").read_text()
    assert "keep_embeddings: false" in config
    (folder / "config.yaml").write_text(
        config.replace("keep_embeddings: false", f"keep_embeddings: {str(former).lower()}")
    )
    (folder / "metrics.json").write_text("{}")
    assert call("evaluate", *options(trained, folder, f"keep_embeddings={now}")) == 1
    assert "holds finished metrics" in capsys.readouterr().err
    assert (folder / "embeddings").exists() == there


def test_two_at_once_do_not_write_into_one_folder(
    trained: Trained, tmp_path: Path, call, capsys: pytest.CaptureFixture
) -> None:
    with alone_in(tmp_path / "taken"):
        assert call("evaluate", *options(trained, tmp_path / "taken")) == 1
    assert "[folder-in-use]" in capsys.readouterr().err


def test_loggers_continue_too(trained: Trained, tmp_path: Path, call, monkeypatch) -> None:
    """One W&B run, and the row of the metrics in the CSV file, after an interruption."""
    folder, write = tmp_path / "logged", StoreWriter._write

    def cut_off(self: StoreWriter, *part: Any) -> None:
        write(self, *part)
        raise KeyError("cut off")

    logged = options(trained, folder, "data.subsets=[wit]", "logger=wandb")
    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "_write", cut_off)
        with pytest.raises(KeyError, match="cut off"):
            call("evaluate", *logged)
    begun = (folder / "wandb" / "run_id").read_text()
    assert call("evaluate", *logged) == 0
    assert (folder / "wandb" / "run_id").read_text() == begun
    row = pandas.read_csv(folder / "csv" / "metrics.csv").iloc[-1]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert row["test/wit/recall@10"] == pytest.approx(metrics["wit/recall@10"])


@pytest.mark.parametrize(
    ("limit", "rows"),
    [
        (("trainer.limit_test_batches=2",), 10),
        (("+trainer.fast_dev_run=true",), 5),
        (("split=val", "data.validation=test", "+trainer.overfit_batches=2"), 10),
    ],
)
def test_a_limit_is_of_all_rows(trained: Trained, tmp_path: Path, call, monkeypatch, limit, rows: int) -> None:
    """Of those that an interrupted evaluation left, too, whatever option limits them."""
    folder, write = tmp_path / "few", StoreWriter._write

    def cut_off(self: StoreWriter, *part: Any) -> None:
        write(self, *part)
        raise KeyError("cut off")

    limited = options(trained, folder, "data.subsets=[wit]", *limit)
    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "_write", cut_off)
        with pytest.raises(KeyError, match="cut off"):
            call("evaluate", *limited)
    assert call("evaluate", *limited) == 0
    timings = json.loads((folder / "timings.json").read_text())
    assert (timings["passages"], timings["queries"], timings["encoded_before"]) == (rows, rows, 5)
