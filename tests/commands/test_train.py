"""ret-train in a new process, on a folder in the ReT-M2KR layout and on the glyphs corpus."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas
import pytest
import torch
import yaml

from ret_lightning.retrieval import read_run
from tests.support.m2kr_folder import SUBSETS, query, write_folder, write_lines
from tests.support.small_runs import SMALL, m2kr, ret_train


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("runs") / "first"
    return folder, ret_train(*m2kr(root, f"output_dir={folder}"), cwd=folder.parent)


@pytest.mark.slow
class TestRunOnM2KR:
    def test_result_files(self, run) -> None:
        folder, done = run
        assert done.returncode == 0, done.stderr
        metrics = json.loads((folder / "metrics.json").read_text())
        assert {f"{s}/recall@{k}" for s in (*SUBSETS, "mean") for k in (1, 2, 3, 5, 10, 50, 100)} <= set(metrics)
        assert {n for n in metrics if n.endswith("pseudo_recall@5")} == {
            "okvqa/pseudo_recall@5", "infoseek/pseudo_recall@5", "mean/pseudo_recall@5",
        }  # fmt: skip
        assert all(0 <= v <= 1 for v in metrics.values())
        intervals = json.loads((folder / "intervals.json").read_text())
        assert intervals.keys() == metrics.keys()
        assert all(low <= metrics[name] <= high for name, (low, high) in intervals.items())
        files = {f"{subset}.{kind}" for subset in SUBSETS for kind in ("trec", "qrels")}
        assert {file.name for file in (folder / "rankings").iterdir()} == files
        for name in ("loss.png", "recall_curves.png", "evaluation_curves.png"):
            assert (folder / name).read_bytes().startswith(b"\x89PNG")
        names = {f"{name}.{kind}" for name in ("best", "last") for kind in ("ckpt", "safetensors")}
        assert {p.name for p in (folder / "checkpoints").iterdir()} == names
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["data"]["root"]
        assert config["output_dir"] == str(folder)
        assert "${" not in (folder / "config.yaml").read_text()

    def test_cost_and_origin_are_recorded(self, run) -> None:
        folder, _ = run
        cost = json.loads((folder / "cost.json").read_text())
        assert cost["training_seconds"] > 0
        assert cost["test_seconds"] > 0
        assert cost["parameters"] >= cost["trained_parameters"] > 0
        origin = json.loads((folder / "origin.json").read_text())
        assert origin.keys() == {"version", "code", "tested_step", "best", "selected_on"}
        logged = pandas.read_csv(folder / "csv" / "metrics.csv")["val/mean/recall@5"]
        assert origin["best"] == {"val/mean/recall@5": pytest.approx(logged.max())}
        assert all(set(version) == {"commit", "dirty"} for version in origin["code"])
        assert not (folder / "failure.json").exists()

    def test_metrics_match_the_rankings(self, run) -> None:
        folder, _ = run
        metrics = json.loads((folder / "metrics.json").read_text())
        for subset in SUBSETS:
            ranked = read_run(folder / "rankings" / f"{subset}.trec")
            assert len(ranked) == 12
            hits = 0
            for i in range(12):
                row = query(subset, i)
                gold = row["passage_id"] if isinstance(row["passage_id"], list) else [row["passage_id"]]
                best = [p for p, _ in ranked[str(row["data_id"])][:5]]
                hits += any(str(passage) in best for passage in gold)
            assert metrics[f"{subset}/recall@5"] == pytest.approx(hits / 12)

    def test_log_has_epochs_and_model_summary(self, run) -> None:
        _, done = run
        log = done.stdout + done.stderr
        for line in (
            "epoch 1, step 5: recall@5",
            "epoch 2, step 10: recall@5",
            "Trainable params",
            "Non-trainable params",
            "random R@5",
        ):
            assert line in log
        assert "Traceback" not in log

    def test_same_seed_reproduces_metrics_exactly(self, run, root: Path, tmp_path: Path) -> None:
        folder, _ = run
        again = tmp_path / "again"
        assert ret_train(*m2kr(root, f"output_dir={again}"), cwd=tmp_path).returncode == 0
        assert (again / "metrics.json").read_bytes() == (folder / "metrics.json").read_bytes()
        for subset in SUBSETS:
            name = f"rankings/{subset}.trec"
            assert (again / name).read_bytes() == (folder / name).read_bytes()

    def test_finished_run_is_not_overwritten(self, run, root: Path) -> None:
        folder, _ = run
        before = (folder / "metrics.json").read_bytes()
        done = ret_train(*m2kr(root, f"output_dir={folder}"), cwd=folder.parent)
        assert done.returncode != 0
        assert done.stderr.strip().endswith("[folder-holds-finished-run]")
        assert "Traceback" not in done.stderr
        assert (folder / "metrics.json").read_bytes() == before

    def test_two_ranks_equal_one_with_twice_the_batch(self, root: Path, tmp_path: Path) -> None:
        # SGD, because AdamW normalizes gradients, which amplifies rounding errors.
        options = ["model.dropout=0", "model.attention_dropout=0", "optimizer=sgd"]
        one = ret_train(*m2kr(root, *options, f"output_dir={tmp_path / 'one'}"), cwd=tmp_path)
        two = ret_train(
            *m2kr(root, *options, "data.batch_size=4", "trainer=ddp_cpu", f"output_dir={tmp_path / 'two'}"),
            cwd=tmp_path,
        )
        assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
        weights = [
            torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
            for name in ("one", "two")
        ]
        assert weights[0].keys() == weights[1].keys()
        for name, tensor in weights[0].items():
            torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)
        metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
        assert metrics[0].keys() == metrics[1].keys()

    def test_ranks_evaluate_different_numbers_of_batches(self, root: Path, tmp_path: Path) -> None:
        # Six batches of passages and four of queries: 4, 3 and 3 for the ranks.
        few = ["data.subsets=[okvqa]", "data.limit=7", "data.eval_batch_size=2", "data.batch_size=2"]
        done = ret_train(
            *m2kr(root, *few, "trainer=ddp_cpu", "trainer.devices=3", f"output_dir={tmp_path / 'run'}"), cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert len((tmp_path / "run/rankings/okvqa.trec").read_text().splitlines()) == 7 * 12


@pytest.mark.slow
def test_glyphs_corpus_with_wandb_offline(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = ret_train(
        "debug=fast",
        "data.subsets=[name,value]",
        "trainer.limit_train_batches=2",
        "trainer.enable_progress_bar=false",
        *SMALL,
        f"output_dir={folder}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    tables = sorted(p.name for p in folder.glob("wandb/offline-run-*/files/media/table/*/examples*.json"))
    assert len(tables) == 2  # after the epoch and after the test
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/val/examples*.json")
    content = json.loads(table.read_text())
    assert [row[0] for row in content["data"]] == ["name", "name", "value", "value"]
    row = dict(zip(content["columns"], content["data"][0], strict=True))
    assert row["gold"].startswith("U+")
    assert row["rank 1"].startswith(("+ U+", "- U+"))
    # Images of offline tables are stored in the run folder until `wandb sync`.
    staged = [p.read_bytes() for p in folder.glob("wandb/artifacts/staging/*")]
    assert any(content.startswith(b"\x89PNG") for content in staged)
    tables = [json.loads(content)["data"] for content in staged if content.startswith(b"{")]
    images = [cell for rows in tables for row in rows for cell in row if isinstance(cell, dict)]
    assert {image["_type"] for image in images} == {"image-file"}
    assert len(images) >= 2 * 4  # two tables of four queries
    assert (folder / "csv/metrics.csv").is_file()


def broken_line(root: Path) -> None:
    write_lines(root / "jsonl/m2kr/test/wit_test.jsonl", [query("wit", 0), "{broken"])


def broken_training_line(root: Path) -> None:
    with (root / "jsonl/m2kr/train/m2kr_up_train.jsonl").open("a") as file:
        file.write('{"data_id": 1}\n')


def broken_image(root: Path) -> None:
    (root / "images/m2kr/images/sub/1.png").write_bytes(b"nothing")


def missing_file(root: Path) -> None:
    (root / "jsonl/m2kr/train/m2kr_up_train.jsonl").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "options", "exit_code", "found", "code"),
    [
        (broken_line, [], 1, "wit_test.jsonl:2: ", "not-json"),
        (broken_training_line, ["data.num_workers=1"], 1, "m2kr_up_train.jsonl:41: ", "missing-field"),
        (broken_image, ["data.num_workers=1"], 1, "sub/1.png", "image-format-unknown"),
        (missing_file, [], 1, "m2kr_up_train.jsonl: ", "missing-corpus-file"),
        (missing_file, ["trainer=ddp_cpu"], 1, "m2kr_up_train.jsonl: ", "missing-corpus-file"),
        (broken_image, ["trainer=ddp_cpu"], 1, "sub/1.png", "image-format-unknown"),
        (None, ["data.subsets=[wit,nothing]"], 1, "wit, infoseek, evqa, okvqa", "subset-without-test-file"),
        (None, ["gate=lstmm", "trainer.max_epoch=1"], 2, "2 problems in the config", "unknown-option"),
    ],
)
def test_bad_input_is_one_line_and_has_no_result(
    change, options: list[str], exit_code: int, found: str, code: str, tmp_path: Path
) -> None:
    root = write_folder(tmp_path / "m2kr")
    if change:
        change(root)
    folder = tmp_path / "run"
    done = ret_train(*m2kr(root, f"output_dir={folder}", *options), cwd=tmp_path)
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if exit_code == 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ret-train: ")]
        # Another rank may report the same problem.
        assert 1 <= len(lines) <= (2 if "trainer=ddp_cpu" in options else 1)
        assert any(found in line and f"[{code}]" in line for line in lines)
        recorded = json.loads((folder / "failure.json").read_text())["error"]
        # If only another rank has the error, the first rank records that another rank failed.
        is_other_rank = "trainer=ddp_cpu" in options and "[another-rank-failed]" in recorded
        assert is_other_rank or (found in recorded and f"[{code}]" in recorded)
        assert not (folder / "metrics.json").exists()
    else:
        assert found in done.stderr
        assert f"[{code}]" in done.stderr
        assert not folder.exists()
