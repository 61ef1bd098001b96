"""ret-evaluate: metrics equal to those of ret-train, for all kinds of checkpoints and numbers of ranks."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pandas
import pytest
import yaml

from ret_lightning.errors import split_code
from ret_lightning.ops.onednn_linear import choose_backend
from ret_lightning.retrieval import read_qrels, read_run
from tests.support.m2kr_folder import SUBSETS
from tests.support.processes import module, run
from tests.support.small_runs import Trained, contents, evaluate, one_thread

pytestmark = pytest.mark.slow  # the tests share one run of ret-train


@pytest.fixture(scope="module")
def evaluated(trained: Trained, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("evaluations") / "one"
    done = evaluate(trained, f"checkpoint={trained.run}", f"output_dir={folder}", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.parent.iterdir()] == ["one"]
    return folder, done


def test_metrics_equal_those_of_ret_train(trained: Trained, evaluated) -> None:
    assert contents(evaluated[0]) == contents(trained.run)


def test_result_files(trained: Trained, evaluated) -> None:
    folder, done = evaluated
    names = {
        "config.yaml",
        "metrics.json",
        "intervals.json",
        "origin.json",
        "timings.json",
        "rankings",
        "examples",
        "ret-evaluate.log",
    }
    assert {path.name for path in folder.iterdir()} == names
    timings = json.loads((folder / "timings.json").read_text())
    assert (timings["passages"], timings["queries"]) == (48, 48)
    assert timings["seconds"].keys() == {"encode", "build", "search", "everything"}
    assert 0 < timings["seconds"]["encode"] < timings["seconds"]["everything"]
    origin = json.loads((folder / "origin.json").read_text())
    assert origin["checkpoint"] == str(trained.run / "checkpoints/best.ckpt")
    assert origin["split"] == "test"
    assert yaml.safe_load((folder / "config.yaml").read_text())["evaluation"]["ranked"] == 500
    assert len(read_run(folder / "rankings/wit.trec")) == len(read_qrels(folder / "rankings/wit.qrels")) == 12
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {f"{s}/recall@{k}" for s in SUBSETS for k in (1, 2, 3, 5, 10, 50, 100)} <= metrics.keys()
    assert "ReT CLIP ViT-L/14" in done.stdout
    row = next(line for line in done.stdout.splitlines() if "this run" in line)
    assert f"{metrics['wit/recall@10']:.3f}" in row


@pytest.mark.parametrize("split", ["test", "val"])
def test_loggers_receive_metrics_and_tables(trained: Trained, evaluated, tmp_path: Path, call, split: str) -> None:
    folder = tmp_path / "logged"
    options = [f"data.root={trained.root}", "data.num_workers=0", f"checkpoint={trained.run}", f"output_dir={folder}"]
    assert call("evaluate", *options, f"split={split}", "data.validation=test", "logger=wandb") == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    if split == "test":
        assert contents(folder) == contents(evaluated[0])
    logged = pandas.read_csv(folder / "csv" / "metrics.csv").iloc[-1]
    assert {name: logged[f"{split}/{name}"] for name in metrics} == pytest.approx(metrics, abs=1e-6)
    assert [path.name for path in (folder / "examples").iterdir()] == [f"{split}.png"]
    tables = {path.name.split("_")[0] for path in (folder / "wandb").rglob("*.table.json")}
    assert {"examples", "Main metrics, " + split} <= tables


@pytest.mark.skipif(choose_backend() != "onednn", reason="needs a processor with AVX-512")
@pytest.mark.parametrize("rows", [1, 5, 48])
def test_metrics_do_not_depend_on_the_batch_size(trained: Trained, evaluated, tmp_path: Path, call, rows: int) -> None:
    options = [f"data.root={trained.root}", "data.num_workers=0", f"checkpoint={trained.run}"]
    assert call("evaluate", *options, f"output_dir={tmp_path / 'other'}", f"data.eval_batch_size={rows}") == 0
    assert contents(tmp_path / "other") == contents(evaluated[0])


def test_two_ranks_and_published_layout(trained: Trained, evaluated, tmp_path: Path) -> None:
    corpus = Path(shutil.copytree(trained.root, tmp_path / "m2kr"))
    shutil.rmtree(corpus / "jsonl/m2kr/train")  # an evaluation does not read training rows
    done = evaluate(
        trained,
        f"data.root={corpus}",
        f"checkpoint={trained.exported}",
        "trainer=ddp_cpu",
        f"output_dir={tmp_path / 'two'}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(evaluated[0])


def test_validation_queries_of_one_subset(trained: Trained, evaluated, tmp_path: Path, call) -> None:
    code = call(
        "evaluate",
        f"data.root={trained.root}",
        "data.num_workers=0",
        f"checkpoint={trained.run / 'checkpoints/best.ckpt'}",
        "split=val",
        "data.validation=test",
        "data.subsets=[wit]",
        "retrieval=faiss_flat",
        "retrieval.candidates=2",
        "evaluation.recall_at=[1,5]",
        "evaluation.ranked=10",
        f"output_dir={tmp_path / 'val'}",
    )
    assert code == 0
    metrics, of_test = (json.loads((f / "metrics.json").read_text()) for f in (tmp_path / "val", evaluated[0]))
    assert {name.split("/")[0] for name in metrics} == {"wit", "mean"}
    # data.validation=test validates on the test queries.
    assert metrics["wit/recall@5"] == of_test["wit/recall@5"]
    assert "wit/recall@10" not in metrics
    ann_recall = json.loads((tmp_path / "val/origin.json").read_text())["ann_recall"]
    assert 0 < ann_recall["wit"]["ann_recall@10"] <= 1


def test_ann_recall_does_not_depend_on_ranks(trained: Trained, tmp_path: Path, call) -> None:
    options = [
        f"data.root={trained.root}",
        "data.num_workers=0",
        "data.subsets=[wit,okvqa]",
        f"checkpoint={trained.run}",
        "retrieval=muvera",
        "retrieval.candidates=10",  # of 12 passages, with encodings of 2 numbers, so recall is below 1
        "retrieval.repetitions=1",
        "retrieval.hyperplanes=1",
        "retrieval.projection=1",
        "evaluation.ranked=10",
        "evaluation.recall_at=[1,5,10]",
    ]
    assert call("evaluate", *options, f"output_dir={tmp_path / 'one'}") == 0
    done = evaluate(trained, *options, "trainer=ddp_cpu", f"output_dir={tmp_path / 'two'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    one, two = (json.loads((tmp_path / name / "origin.json").read_text()) for name in ("one", "two"))
    measured = one["ann_recall"]
    assert two["ann_recall"] == measured
    assert set(measured) >= {"wit", "okvqa"}
    assert 1 < sum(measured[subset]["ann_recall@10"] for subset in ("wit", "okvqa")) < 2  # measured, and below 1


@pytest.mark.parametrize(
    ("options", "exit_code", "code", "found"),
    [
        (["checkpoint=nowhere"], 1, "checkpoint-folder-missing", "nowhere"),
        (["checkpoint={run}", "output_dir={run}"], 2, "folder-holds-training-run", "output_dir={run}"),
        (
            ["checkpoint={run}", "data.subsets=[wit,nothing]"],
            1,
            "subset-without-test-file",
            "wit, infoseek, evqa, okvqa",
        ),
        ([], 2, "value-missing", "checkpoint=<value>"),
        (["checkpoint={run}", "trainer.limit_test_batches=0"], 2, "nothing-to-evaluate", "limit_test_batches=0"),
        (["checkpoint={run}", "split=train"], 2, "value-of-wrong-type", "split=train"),
        (["checkpoint={run}", "evaluation.ranked=50"], 2, "too-few-ranked", "evaluation.ranked=50"),
        (["checkpoint={run}", "evaluation.recall_at=[]"], 2, "recall-at-too-small", "evaluation.recall_at=[]"),
    ],
)
def test_error_is_one_line(
    options: list[str], exit_code: int, code: str, found: str, trained: Trained, tmp_path: Path, call, capsys
) -> None:
    options = [option.format(run=trained.run) for option in options]
    assert call("evaluate", f"data.root={trained.root}", f"output_dir={tmp_path / 'out'}", *options) == exit_code
    printed = capsys.readouterr().err
    assert split_code(printed.strip())[1] == code
    assert found.format(run=trained.run) in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out/metrics.json").exists()


def test_folder_of_an_unfinished_run_is_refused(trained: Trained, tmp_path: Path, call, capsys) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text("mine")
    options = (f"checkpoint={trained.run}", f"data.root={trained.root}", f"output_dir={tmp_path / 'run'}")
    assert call("evaluate", *options) == 2
    assert "[folder-holds-training-run]" in capsys.readouterr().err
    assert (tmp_path / "run/config.yaml").read_text() == "mine"


@pytest.mark.parametrize(("reader", "code"), [("head -1", 0), (None, 1)])
def test_metrics_are_written_before_they_are_printed(trained: Trained, tmp_path: Path, reader, code) -> None:
    command = [*module("ret_lightning.commands.evaluate"), f"data.root={trained.root}", "data.num_workers=0"]
    command += [f"checkpoint={trained.run}", f"output_dir={tmp_path / 'piped'}", "keep_embeddings=false"]
    line = shlex.join(command) + (" > /dev/full" if reader is None else f" | {reader}")
    done = run(["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], tmp_path, one_thread())
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert ("standard output: cannot be written (No space left on device)" in done.stderr) == bool(code)
    assert (tmp_path / "piped/metrics.json").is_file()
    assert not (tmp_path / "piped/embeddings").exists()
