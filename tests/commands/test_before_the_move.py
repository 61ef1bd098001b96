"""Files of commit c524d0d, before modules moved, described in tests/assets/before_the_move/README.md."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from safetensors.torch import load_file

from ret_lightning import RetRetriever
from ret_lightning.config.targets.renamed_keys import current_metric
from ret_lightning.retrieval import read_run
from ret_lightning.runs.identity import differences, run_identity
from ret_lightning.runs.resume.resumed_config import stored_config
from tests.support.paths import ASSETS

FILES = ASSETS / "before_the_move"
WRITTEN_IN = "/tmp/before_the_move"  # original folder of the files, named in their configs
ROW_IMAGES = "m2kr/images/m2kr/images"

Call = Callable[..., int]


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """Copy the files to another folder; `interrupted` gets the frozen weights of `run`."""
    folder = tmp_path / "moved"
    shutil.copytree(FILES, folder)
    shutil.copy(folder / "run/checkpoints/frozen.safetensors", folder / "interrupted/checkpoints")
    return folder


def rewrite_paths(folder: Path) -> None:
    """Replace the original folder in the stored configs by this folder."""
    for file in folder.rglob("config.yaml"):
        file.write_text(file.read_text().replace(WRITTEN_IN, str(folder)))


def overrides(folder: Path) -> list[str]:
    """Return the overrides of `run` and `interrupted` for this folder, without output_dir."""
    lines = yaml.safe_load((folder / "run/.hydra/overrides.yaml").read_text())
    lines = [line.replace(WRITTEN_IN, str(folder)) for line in lines if not line.startswith("output_dir=")]
    return [*lines, "data.validation=val_or_test"]  # meaning of the default, auto, at that commit


def assert_same_results(folder: Path, expected: Path) -> None:
    metrics, stored = (json.loads((each / "metrics.json").read_text()) for each in (folder, expected))
    stored = {current_metric(key): value for key, value in stored.items()}
    assert {key: metrics.get(key) for key in stored} == pytest.approx(stored)
    for file in (expected / "rankings").glob("*.trec"):
        ranked, recorded = read_run(folder / "rankings" / file.name), read_run(file)
        assert ranked.keys() == recorded.keys()
        for query, hits in recorded.items():
            assert [passage for passage, _ in ranked[query]] == [passage for passage, _ in hits]
            assert [score for _, score in ranked[query]] == pytest.approx([score for _, score in hits], abs=1e-4)


def assert_same_weights(file: Path, expected: Path) -> None:
    weights, recorded = load_file(file), load_file(expected)
    assert weights.keys() == recorded.keys()
    for name, tensor in recorded.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


def assert_same_vectors(checkpoint: Path, folder: Path) -> None:
    image = folder / ROW_IMAGES / "sub/1.png"
    pairs = [("What is fact 1?", image), ("What is fact 1?", None), (None, image)]
    retriever = RetRetriever.from_pretrained(checkpoint)
    expected = load_file(folder / "vectors.safetensors")
    torch.testing.assert_close(retriever.encode_queries(pairs), expected["queries"], rtol=0, atol=1e-5)
    torch.testing.assert_close(retriever.encode_passages(pairs), expected["passages"], rtol=0, atol=1e-5)


def test_config_has_the_same_identity(moved: Path) -> None:
    rewrite_paths(moved)
    with initialize_config_module("ret_lightning.conf", version_base="1.3"):
        config = compose("train", [*overrides(moved), f"output_dir={moved / 'run'}"])
    assert differences(run_identity(stored_config(moved / "run")), run_identity(config)) == {}


@pytest.mark.slow
def test_evaluate_reproduces_metrics(moved: Path, call: Call) -> None:
    options = ["data=m2kr", f"data.root={moved / 'm2kr'}", "data.num_workers=0", "trainer.enable_progress_bar=false"]
    assert call("evaluate", f"checkpoint={moved / 'run'}", f"output_dir={moved / 'evaluation'}", *options) == 0
    assert_same_results(moved / "evaluation", moved / "run")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # its ModelCheckpoint is BestCheckpoint now
@pytest.mark.parametrize("way", ["folder", "auto"])
def test_resume_finishes_interrupted_run(way: str, moved: Path, call: Call) -> None:
    """The resumed run ends like `run`, which was not interrupted."""
    folder = moved / "interrupted"
    if way == "folder":
        options = [f"resume={folder}", f"data.root={moved / 'm2kr'}"]
    else:
        rewrite_paths(moved)
        options = ["resume=auto", f"output_dir={folder}", *overrides(moved)]
    logged = pandas.read_csv(folder / "csv/metrics.csv").query("step < 6")
    assert call("train", *options) == 0
    pandas.testing.assert_frame_equal(
        pandas.read_csv(folder / "csv/metrics.csv")[: len(logged)][logged.columns], logged
    )
    assert_same_results(folder, moved / "run")
    assert_same_weights(folder / "checkpoints/last.safetensors", moved / "run/checkpoints/last.safetensors")


@pytest.mark.slow
def test_sweep_recognises_finished_jobs(moved: Path, call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    rewrite_paths(moved)
    options = [option for option in overrides(moved) if not option.startswith("gate=")]
    code = call("train", "-m", *options, "gate=none,scalar,lstm", f"output_dir={moved / 'sweep'}", "dry_run=true")
    assert code == 0
    assert "2 finished, 1 to start" in "".join(capfd.readouterr())


@pytest.mark.slow
def test_report_compares_jobs(moved: Path, call: Call) -> None:
    assert call("report", f"runs={moved / 'sweep'}", f"output={moved / 'report'}", "gallery=0") == 0
    rows = (moved / "report/results.md").read_text().splitlines()
    for job, gate in (("gate=none", "NoGate"), ("gate=scalar", "ScalarGate")):
        recall = json.loads((moved / "sweep" / job / "metrics.json").read_text())["mean/recall@5"]
        assert any(row.startswith(f"| {gate} | 1 | {recall:.3f} |") for row in rows)


@pytest.mark.slow
def test_export_writes_same_checkpoint(moved: Path, call: Call) -> None:
    assert call("export", f"checkpoint={moved / 'run'}", f"output={moved / 'again'}") == 0
    assert_same_weights(moved / "again/model.safetensors", moved / "exported/model.safetensors")
    assert_same_vectors(moved / "again", moved)


def test_exported_model_encodes_same_vectors(moved: Path) -> None:
    assert_same_vectors(moved / "exported", moved)


@pytest.mark.parametrize(("index", "checkpoint"), [("index_exact", "exported"), ("index_faiss", "run")])
def test_index_finds_same_passages(index: str, checkpoint: str, moved: Path, call: Call) -> None:
    options = [
        f"queries={moved / 'm2kr/jsonl/m2kr/test/okvqa_test.jsonl'}", f"image_root={moved / ROW_IMAGES}", "top_k=5",
        f"output={moved / 'hits.jsonl'}", f"checkpoint={moved / checkpoint}",
    ]  # fmt: skip
    assert call("search", f"index={moved / index}", *options) == 0
    found, recorded = (
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in (moved / "hits.jsonl", moved / f"{index}.jsonl")
    )
    assert len(found) == len(recorded)
    for hit, expected in zip(found, recorded, strict=True):
        assert hit["score"] == pytest.approx(expected["score"], abs=1e-4)
        assert {**hit, "score": None} == {**expected, "score": None}
