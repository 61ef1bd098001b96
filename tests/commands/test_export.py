"""ret-export to the published layout, and init_from with an exported model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError, split_code
from ret_lightning.models import EncoderInput
from ret_lightning.runs.export import export
from ret_lightning.runs.initial_model import initial_retriever
from ret_lightning.training.checkpointing.load import build_untrained, open_retriever
from tests.support.small_runs import command, m2kr, ret_train

pytestmark = pytest.mark.slow  # the tests share one run of ret-train


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = ret_train(*m2kr(root, f"output_dir={folder}", "gate=coupled", "gate.forget_bias=0.5"), cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    done = command("export", f"checkpoint={run}", f"output={folder}", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in folder.parent.iterdir()] == ["model"]  # no log and no .hydra in the working folder
    return folder


def rows(seed: int = 0) -> EncoderInput:
    random = torch.Generator().manual_seed(seed)
    return EncoderInput.dense(
        torch.randint(1, 40000, (4, 6), generator=random),
        torch.ones(4, 6),
        torch.randn(4, 3, 40, 40, generator=random),
        torch.tensor([1, 1, 0, 1]),
        torch.tensor([1, 0, 1, 1]),
    )


def features(retriever: RetRetriever) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([retriever.query_tower(rows()), retriever.passage_tower(rows(1))])


def test_best_checkpoint_is_exported(run: Path, exported: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    trained = build_untrained(OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=True))
    trained.load_state_dict(
        {n.removeprefix("retriever."): t for n, t in checkpoint["state_dict"].items() if "loss" not in n}
    )
    again = RetRetriever.from_pretrained(exported)
    assert again.query_tower.cells[0].gate.name == "coupled"
    assert torch.equal(features(again), features(trained.eval()))
    assert again.query_tower.image_transform.mean == (0.15, 0.15, 0.15)
    assert again.encode_queries([("What is this?", None)]).shape == (1, 4, 16)


def test_card_has_results_config_and_origin(run: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    test, validation = card.split("## Results on the test split")[1].split("## Results on the validation split")
    for subset in ("okvqa", "wit", "mean"):
        (row,) = [line for line in test.splitlines() if line.startswith(f"| {subset} |")]
        assert f"{metrics[f'{subset}/recall@5']:.4f}" in row
    assert "| okvqa |" in validation
    assert 'RetRetriever.from_pretrained("model")' in card
    assert "Only ret_lightning can load it" in card  # the coupled gate is not the published one
    assert "CoupledGate" in card.split("## Training configuration")[1]
    assert "| gate.forget_bias | 0.5 |" in card
    assert str(run / "checkpoints" / "best.ckpt") in card


def test_checkpoint_without_run_folder_is_exported(run: Path, exported: Path, tmp_path: Path) -> None:
    shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    export(tmp_path / "alone.ckpt", tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    card = (tmp_path / "model" / "README.md").read_text()
    assert "no test metrics for these weights" in card
    assert "Results on the test split" not in card


def test_metrics_of_other_weights_are_not_reported(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "origin.json").write_text(json.dumps({"tested_step": 10**6}))
    export(copy, tmp_path / "model")
    assert "Results on the test split" not in (tmp_path / "model" / "README.md").read_text()


def test_training_starts_from_an_exported_model(run: Path, exported: Path, root: Path, tmp_path: Path) -> None:
    config = OmegaConf.load(run / "config.yaml")
    for source in (exported, run, run / "checkpoints" / "last.ckpt"):
        config.init_from = str(source)
        torch.manual_seed(1)
        started = initial_retriever(config)
        assert torch.equal(features(started.eval()), features(open_retriever(source)))
        assert all(p.requires_grad for p in started.query_tower.text_backbone.embedding_parameters())
    done = ret_train(
        *m2kr(root, f"output_dir={tmp_path / 'next'}", "gate=coupled", "gate.forget_bias=0.5", f"init_from={exported}"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    # The first loss is that of the trained model.
    first, second = (Path(f, "csv", "metrics.csv").read_text().splitlines() for f in (run, tmp_path / "next"))
    column = first[0].split(",").index("train/loss")
    losses = [[float(v) for line in f[1:] if (v := line.split(",")[column])] for f in (first, second)]
    assert second[0] == first[0]
    assert losses[1][0] < losses[0][0]


def test_other_architecture_is_one_line(exported: Path, root: Path, tmp_path: Path) -> None:
    done = ret_train(*m2kr(root, f"output_dir={tmp_path / 'next'}", f"init_from={exported}"), cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ret-train: init_from={exported}: ")
    assert "gate=coupled" in last
    assert "gate.forget_bias=0.5" in last
    assert last.endswith("[checkpoint-other-architecture]")


def test_existing_files_are_not_overwritten(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    export(run, folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(ConfigError) as raised:
        export(run, folder)
    error = raised.value
    assert (error.code, error.path, error.found) == ("export-output-taken", str(folder), "config.json")
    assert (folder / "model.safetensors").read_bytes() == b"precious"
    export(run, folder, overwrite=True)
    assert RetRetriever.from_pretrained(folder).query_tower.cells[0].gate.name == "coupled"
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("mine")
    with pytest.raises(ConfigError) as raised:
        export(run, tmp_path / "notes")
    assert (raised.value.code, raised.value.found) == ("export-output-taken", "README.md")
    assert (tmp_path / "notes" / "README.md").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as raised:
        export(run, tmp_path / "file")
    assert raised.value.code == "export-output-is-file"


def test_missing_options_are_reported(tmp_path: Path) -> None:
    done = command("export", cwd=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "ret-export: 2 problems in the config:"
    assert "checkpoint=<value>" in lines[1]
    assert split_code(lines[1])[1] == "value-missing"
    assert list(tmp_path.iterdir()) == []
