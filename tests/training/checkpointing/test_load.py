"""Models loaded from training checkpoints."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ret_lightning import RetModule
from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from ret_lightning.errors import UserError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from ret_lightning.losses import ContrastiveLoss
from ret_lightning.models import Backbone, RetRetriever
from ret_lightning.models.backbones import clip_backbone
from ret_lightning.training.checkpointing import selection_queries
from ret_lightning.training.checkpointing.checkpoint_io import RunCheckpointIO
from ret_lightning.training.checkpointing.load import (
    CheckpointRecord,
    build_untrained,
    find_training_checkpoint,
    load_trained_model,
    read_selected_on,
)
from ret_lightning.training.schedule import WarmupCosine
from tests.support.own_preprocessors import WORDS, WordTokenizer
from tests.support.report_runs import resolved
from tests.support.scored_checkpoints import RECALL, write_checkpoint, write_config
from tests.support.small_runs import SMALL
from tests.support.tiny_training import checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[RetRetriever, Path]:
    """A small model of a real config, and a run folder with its checkpoint as ret-train writes it."""
    config, _ = resolved(("data=m2kr", "data.root=/nowhere", "logger=csv", *SMALL))
    retriever = build_untrained(config)
    retriever.query_tower.text_backbone.source = "owner/clip"
    module = RetModule(retriever, ContrastiveLoss(), torch.optim.SGD, WarmupCosine())
    trainer = SimpleNamespace(
        callback_metrics={"val/wit/recall@5": torch.tensor(0.25), "train/loss": torch.tensor(2.0)}
    )
    content = checkpoint(module, step=7)
    CheckpointRecord(config).on_save_checkpoint(trainer, module, content)
    run = tmp_path_factory.mktemp("run")
    RunCheckpointIO().save_checkpoint(content, run / "checkpoints/last.ckpt")
    return retriever.eval(), run


def test_loaded_model_equals_saved_model(saved: tuple[RetRetriever, Path]) -> None:
    retriever, run = saved
    trained = load_trained_model(run / "checkpoints/last.ckpt")
    state, own = retriever.state_dict(), trained.retriever.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())
    assert not trained.retriever.training
    assert (trained.step, trained.validation, trained.test) == (7, {"wit/recall@5": 0.25}, {})
    assert trained.retriever.query_tower.text_backbone.source == "owner/clip"


@pytest.mark.parametrize(("step", "test"), [(7, {"wit/recall@5": 0.5}), (8, {})])
def test_test_metrics_require_the_same_step(saved: tuple, tmp_path: Path, step: int, test: dict) -> None:
    run = Path(shutil.copytree(saved[1], tmp_path / "run"))
    (run / "metrics.json").write_text(json.dumps({"wit/recall@5": 0.5}))
    (run / "origin.json").write_text(json.dumps({"tested_step": step}))
    assert load_trained_model(run / "checkpoints/last.ckpt").test == test


def test_weights_not_matching_config_are_refused(saved: tuple, tmp_path: Path) -> None:
    run = Path(shutil.copytree(saved[1], tmp_path / "run"))
    file = run / "checkpoints/last.ckpt"
    content = torch.load(file, weights_only=True)
    content["ret_lightning"]["config"]["model"]["num_tokens"] = 5
    torch.save(content, file)
    with pytest.raises(UserError) as caught:
        load_trained_model(file)
    assert (caught.value.code, caught.value.path) == ("checkpoint-weights-mismatch", str(file))


def test_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "epoch": 0, "global_step": 1}, tmp_path / "other.ckpt")
    with pytest.raises(UserError) as caught:
        load_trained_model(tmp_path / "other.ckpt")
    assert caught.value.code == "checkpoint-without-record"


def test_find_checkpoint_of_each_kind_of_source(saved: tuple, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = saved[1] / "checkpoints/last.ckpt"
    (tmp_path / "link.ckpt").symlink_to(file)
    with caplog.at_level(logging.INFO):
        assert find_training_checkpoint(tmp_path / "link.ckpt", option="init_from") == file.resolve()
    assert f"init_from: {file.resolve()}, step 7 (named explicitly)" in caplog.text
    assert find_training_checkpoint("") is None
    assert find_training_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError) as caught:
        find_training_checkpoint(tmp_path / "model.safetensors")
    assert caught.value.code == "checkpoint-not-a-folder"


@pytest.mark.parametrize(
    ("name", "selected_on"), [("best_step_10.ckpt", "holdout"), ("last.ckpt", selection_queries.LAST)]
)
def test_selected_on_depends_on_the_checkpoint(tmp_path: Path, name: str, selected_on: str) -> None:
    write_config(tmp_path)
    write_checkpoint(tmp_path, "best_step_10.ckpt", 10, {RECALL: 0.8})
    write_checkpoint(tmp_path, "last.ckpt", 20)
    (tmp_path / "origin.json").write_text(json.dumps({selection_queries.SELECTED_ON: "holdout"}))
    assert read_selected_on(tmp_path / "checkpoints" / name) == selected_on


@pytest.fixture
def run_with_vocabulary(
    saved: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RetRetriever, dict, Path]:
    """A model whose tokenizer reads a file, its config, and its checkpoint."""
    monkeypatch.setenv(OWN_PACKAGES, "tests")
    (tmp_path / "words.txt").write_text(WORDS)
    config = copy.deepcopy(load_trained_model(saved[1] / "checkpoints/last.ckpt").config)
    target = {"_target_": "tests.support.own_preprocessors.WordTokenizer", "vocabulary": str(tmp_path / "words.txt")}
    config["backbone"]["tokenizer"] = config["model"]["backbone"]["tokenizer"] = target
    retriever = build_untrained(config)
    module = RetModule(retriever, ContrastiveLoss(), torch.optim.SGD, WarmupCosine())
    content = checkpoint(module, step=7)
    CheckpointRecord(config).on_save_checkpoint(SimpleNamespace(callback_metrics={}), module, content)
    RunCheckpointIO().save_checkpoint(content, tmp_path / "run/last.ckpt")
    return retriever, config, tmp_path / "run/last.ckpt"


def test_tokenizer_is_restored_from_checkpoint(run_with_vocabulary: tuple, tmp_path: Path) -> None:
    (tmp_path / "words.txt").unlink()
    tower = load_trained_model(run_with_vocabulary[2]).retriever.query_tower
    assert type(tower.tokenizer) is WordTokenizer
    assert tower.tokenizer.words.decode() == WORDS
    assert type(tower.image_transform) is ImageTransform


def fixed_backbone(text: dict, vision: dict) -> Backbone:
    """Build a backbone with its own tokenizer and image transform."""
    return clip_backbone(text, vision)


def test_tokenizer_missing_in_config_is_restored(run_with_vocabulary: tuple, tmp_path: Path) -> None:
    content = torch.load(run_with_vocabulary[2], weights_only=True)
    backbone = content["ret_lightning"]["config"]["model"]["backbone"]
    content["ret_lightning"]["config"]["model"]["backbone"] = {
        "_target_": f"{__name__}.fixed_backbone", "text": backbone["text"], "vision": backbone["vision"],
    }  # fmt: skip
    torch.save(content, tmp_path / "other.ckpt")
    retriever = load_trained_model(tmp_path / "other.ckpt").retriever
    assert {type(tower.tokenizer) for tower in (retriever.query_tower, retriever.passage_tower)} == {WordTokenizer}


@pytest.mark.parametrize("words", [WORDS, WORDS + "blue\n"])
def test_run_with_another_tokenizer_is_refused(run_with_vocabulary: tuple, tmp_path: Path, words: str) -> None:
    _, config, file = run_with_vocabulary
    (tmp_path / "words.txt").write_text(words)
    module = SimpleNamespace(retriever=build_untrained(config))
    content = torch.load(file, weights_only=True)
    if words == WORDS:
        CheckpointRecord(config).on_load_checkpoint(None, module, content)
        return
    with pytest.raises(UserError) as raised:
        CheckpointRecord(config).on_load_checkpoint(None, module, content)
    assert (raised.value.code, raised.value.key) == ("preprocessor-changed", "backbone.tokenizer")
    assert raised.value.differences == ("the file words.txt differs",)


def test_checkpoint_without_preprocessors_loads(saved: tuple, tmp_path: Path) -> None:
    """Versions before 0.2 stored no preprocessors."""
    run = Path(shutil.copytree(saved[1], tmp_path / "run"))
    file = run / "checkpoints/last.ckpt"
    content = torch.load(file, weights_only=True)
    del content["ret_lightning"]["preprocessors"]
    torch.save(content, file)
    retriever = load_trained_model(file).retriever
    assert type(retriever.query_tower.tokenizer) is ClipTokenizer
    module = SimpleNamespace(retriever=retriever)
    CheckpointRecord({}).on_load_checkpoint(None, module, content)
