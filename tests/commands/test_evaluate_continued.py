"""ret-evaluate, killed while it encodes and run again: the same result files, and no row encoded twice."""

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

from ret_lightning.errors import split_code
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

ROWS = 2 * PASSAGES * len(SUBSETS)  # in all candidate pools and query files
# Parts of 5, 5 and 2 rows: passages and queries of wit, and the first part of the passages of infoseek.
KILLED_AFTER, ENCODED = 7, 12 + 12 + 5

# ret-evaluate that records the number of encoded rows, and kills itself after a number of stored parts.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from ret_lightning.commands.evaluate import main
from ret_lightning.models import RetRetriever
from ret_lightning.retrieval.store.embedding_store import StoreWriter

encode, write, last = RetRetriever.encode, StoreWriter._write, int(sys.argv.pop(1))
rows, parts = Path(sys.argv.pop(1)), 0

def counting(self, side, inputs, *others, **named):
    with rows.open("a") as file:
        file.write(f"{len(inputs)}\\n")
    return encode(self, side, inputs, *others, **named)

def killing(self, part, *content):
    global parts
    write(self, part, *content)
    parts += 1
    if parts == last:
        os.kill(os.getpid(), signal.SIGKILL)

RetRetriever.encode, StoreWriter._write = counting, killing
main()
"""


def options(trained: Trained, folder: Path, *more: str) -> list[str]:
    return [
        f"data.root={trained.root}", "data.num_workers=0", "data.eval_batch_size=5", f"checkpoint={trained.run}",
        f"output_dir={folder}", *more,
    ]  # fmt: skip


def run_counted(folder: Path, rows: Path, *arguments: str, kill_after: int = 0) -> subprocess.CompletedProcess[str]:
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
    done = run_counted(folder, rows, *options(trained, folder), kill_after=KILLED_AFTER)
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


def test_killed_evaluation_resumes(trained: Trained, killed: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder, rows = copied(killed, tmp_path), tmp_path / "rows"
    done = run_counted(folder, rows, *options(trained, folder))
    assert done.returncode == 0, done.stderr
    assert count(rows) == ROWS - ENCODED
    assert contents(folder) == contents(undisturbed)
    assert "wit: 12 of 12 queries" in log_of(folder)
    assert "infoseek: 5 of 12 passages" in log_of(folder)
    assert json.loads((folder / "timings.json").read_text())["encoded_before"] == ENCODED
    assert not (folder / "embeddings").exists()


def test_two_ranks_resume_one(trained: Trained, killed: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = copied(killed, tmp_path)
    more = ("trainer=ddp_cpu", "keep_embeddings=true", "data.num_workers=1")
    done = evaluate(trained, *options(trained, folder, *more), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "infoseek: 5 of 12 passages" in log_of(folder)
    assert contents(folder) == contents(undisturbed)
    assert embeddings(folder) == embeddings(undisturbed)


def test_one_rank_resumes_two(trained: Trained, undisturbed: Path, tmp_path: Path) -> None:
    """Only the first rank is killed, and the other one ends with it; its progress is read from its parts."""
    folder, rows = tmp_path / "two", tmp_path / "rows"
    done = run_counted(folder, rows, *options(trained, folder, "trainer=ddp_cpu"), kill_after=3)
    assert done.returncode == -signal.SIGKILL, done.stderr  # no process holds its standard output
    sizes = (5, 5, 2)
    there = sum(sizes[int(note.stem)] for note in (folder / "embeddings").rglob("parts/*.json"))
    assert 6 <= there < ROWS
    rows.unlink()
    done = run_counted(folder, rows, *options(trained, folder))
    assert done.returncode == 0, done.stderr
    assert count(rows) == ROWS - there
    assert contents(folder) == contents(undisturbed)


def test_damaged_part_is_encoded_again(trained: Trained, killed: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder, rows = copied(killed, tmp_path), tmp_path / "rows"
    vectors = folder / "embeddings/wit/passages/vectors.f16"
    content = bytearray(vectors.read_bytes())
    content[0] ^= 1  # in the first part of five rows
    vectors.write_bytes(content)
    done = run_counted(folder, rows, *options(trained, folder))
    assert done.returncode == 0, done.stderr
    assert count(rows) == ROWS - ENCODED + 5
    assert contents(folder) == contents(undisturbed)


def test_evaluation_killed_while_searching_resumes(trained: Trained, undisturbed: Path, tmp_path: Path) -> None:
    """All embeddings are stored, but there are no metrics."""
    folder, rows = tmp_path / "all", tmp_path / "rows"
    shutil.copytree(undisturbed / "embeddings", folder / "embeddings")
    done = run_counted(folder, rows, *options(trained, folder))
    assert done.returncode == 0, done.stderr
    assert count(rows) == 1  # Lightning requires a batch; its single row is not stored again
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
        questions = [query(subset, i) for i in range(PASSAGES)]
        expected = retriever.encode_queries([pair(row, "instruction", "question") for row in questions], num_workers=0)
        torch.testing.assert_close(queries.vectors, expected, atol=1e-5, rtol=0)


def test_other_checkpoint_or_pool_is_refused(
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
    for change, difference in (
        ((f"checkpoint={tmp_path / 'other'}",), "checkpoint fingerprint"),
        ((f"data.root={corpus}",), "texts and images"),
        (("split=val", "data.validation=test"), "'test'"),
    ):
        assert call("evaluate", *options(trained, folder, *change)) == 1
        printed = capsys.readouterr().err
        assert printed.startswith(f"ret-evaluate: {folder}/embeddings: ")
        assert difference in printed
        assert split_code(printed.strip())[1] == "stored-vectors-differ"
        assert "Traceback" not in printed
        assert embeddings(folder) == before
        assert (folder / "config.yaml").read_text() == config
    # What ret-export makes of a checkpoint is the same model.
    assert call("evaluate", *options(trained, folder, f"checkpoint={trained.exported}")) == 0
    assert "5 of 12 passages" in log_of(folder)


def test_full_disk_is_one_line_and_keeps_embeddings(
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
    printed = capsys.readouterr().err
    assert printed.startswith(f"ret-evaluate: {folder}: ")
    assert f"output_dir={folder}" in printed
    assert printed.strip().endswith("[disk-full]")
    assert "Traceback" not in printed
    assert call("evaluate", *options(trained, folder)) == 0
    assert "wit: 12 of 12 passages" in log_of(folder)
    assert contents(folder) == contents(undisturbed)


def test_unreadable_images_are_read_again(
    trained: Trained, undisturbed: Path, tmp_path: Path, call, capsys: pytest.CaptureFixture
) -> None:
    """A second run counts them again, and does not reuse embeddings encoded without them."""
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
    assert "12 of 12 queries" in log_of(folder)  # the image was read again, and no row encoded
    assert call("evaluate", *skip, "data.on_bad_row=raise") == 1
    assert "3.png" in capsys.readouterr().err
    # With skipped rows all stores are finished; the missing metrics simulate a kill.
    assert call("evaluate", *skip, "data.max_bad_fraction=0.1", "keep_embeddings=true") == 0
    assert "wit: the images of the test queries: 1 of 12 rows (1 missing_image) cannot be read" in log_of(folder)
    assert contents(folder) != contents(undisturbed)
    (folder / "metrics.json").unlink()
    assert call("evaluate", *skip) == 1
    assert most in capsys.readouterr().err
    image.write_bytes(content)
    assert call("evaluate", *skip) == 0
    assert contents(folder) == contents(undisturbed)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="requires /proc/self/maps")
@pytest.mark.parametrize("retrieval", ["exact", "faiss_flat"])
def test_deleted_embeddings_are_not_mapped(trained: Trained, tmp_path: Path, call, monkeypatch, retrieval: str) -> None:
    """NFS keeps mapped files, and the folder with them."""
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
def test_leftover_embeddings_are_removed(
    trained: Trained, killed: Path, tmp_path: Path, call, capsys, former: bool, now: bool, there: bool
) -> None:
    """A kill between metrics.json and their removal leaves them in a finished folder."""
    folder = copied(killed, tmp_path)
    config = (folder / "config.yaml").read_text()
    assert "keep_embeddings: false" in config
    (folder / "config.yaml").write_text(
        config.replace("keep_embeddings: false", f"keep_embeddings: {str(former).lower()}")
    )
    (folder / "metrics.json").write_text("{}")
    assert call("evaluate", *options(trained, folder, f"keep_embeddings={now}")) == 1
    assert "[folder-holds-metrics]" in capsys.readouterr().err
    assert (folder / "embeddings").exists() == there


def test_folder_in_use_is_refused(trained: Trained, tmp_path: Path, call, capsys: pytest.CaptureFixture) -> None:
    with alone_in(tmp_path / "taken"):
        assert call("evaluate", *options(trained, tmp_path / "taken")) == 1
    assert "[folder-in-use]" in capsys.readouterr().err


def test_loggers_are_resumed(trained: Trained, tmp_path: Path, call, monkeypatch) -> None:
    """The resumed evaluation has the same W&B run, and the CSV file has the metrics."""
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
def test_limit_applies_to_all_rows(trained: Trained, tmp_path: Path, call, monkeypatch, limit, rows: int) -> None:
    """The limit includes rows encoded before an interruption."""
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
