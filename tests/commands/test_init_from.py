"""init_from: what the log states, files in place of folders, and weights of another architecture."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.runs.identity import flat
from ret_lightning.runs.initial_model import initial_retriever
from tests.support.small_runs import Trained, small_run

pytestmark = pytest.mark.slow  # they share one run of ret-train


@pytest.fixture
def config(trained: Trained) -> DictConfig:
    return OmegaConf.load(trained.run / "config.yaml")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("run", "init_from: {run}/checkpoints/best.ckpt, step 5 (best by val/mean/recall@5: "),
        ("run/checkpoints/last.ckpt", "init_from: {run}/checkpoints/last.ckpt, step 5 (as named)"),
        ("exported", "init_from: weights in {exported}, of no recorded step"),
    ],
)
def test_the_log_states_file_and_step(
    trained: Trained, config: DictConfig, caplog: pytest.LogCaptureFixture, source: str, message: str
) -> None:
    config.init_from = str(trained.run.parent / source)
    with caplog.at_level(logging.INFO):
        initial_retriever(config)
    assert message.format(run=trained.run, exported=trained.exported) in caplog.text


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("exported/model.safetensors", "name the folder: {exported}"),
        ("exported/config.json", "name the folder: {exported}"),
        ("run/checkpoints/best.safetensors", "name a .ckpt file, or the run folder: {run}"),
    ],
)
def test_a_file_in_place_of_a_folder(trained: Trained, config: DictConfig, file: str, remedy: str) -> None:
    config.init_from = str(trained.run.parent / file)
    for load in (lambda: initial_retriever(config), lambda: RetRetriever.from_pretrained(config.init_from)):
        with pytest.raises(UserError) as raised:
            load()
        assert raised.value.code == "checkpoint-not-a-folder"
        assert str(raised.value.path) == config.init_from
        assert remedy.format(run=trained.run, exported=trained.exported) in raised.value.message


@pytest.mark.parametrize("name", ["checkpoints/best.ckpt", "checkpoints", ""])
def test_from_pretrained_names_ret_export(trained: Trained, name: str) -> None:
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(trained.run / name)
    assert raised.value.code in ("checkpoint-not-a-folder", "checkpoint-config-missing")
    named = trained.run / name if name.endswith(".ckpt") else trained.run
    assert f"`ret-export checkpoint={named} output=DIR`" in raised.value.message


def test_what_fits_is_loaded_and_the_rest_is_listed(
    trained: Trained, call: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = small_run(
        trained.root, tmp_path / "run", "gate=coupled", "model.num_tokens=2", "trainer.max_steps=1", "test_with=none"
    )
    assert call("train", *options, f"init_from={trained.run}") == 1
    assert capsys.readouterr().err.strip().endswith("[checkpoint-other-architecture]")
    assert call("train", *options, f"init_from={trained.run}", "init_partial=true") == 0
    printed = capsys.readouterr()
    log = printed.out + printed.err
    assert "gate=lstm there and coupled here" in log
    assert "not loaded, and as initialised: query_model.ret_cell.query_hidden_states (1, 2, 64)" in log
    assert "left out of the checkpoint: " in log
    assert "query_model.ret_cell.text_input_gate_w" in log


def test_partial_weights(trained: Trained, config: DictConfig) -> None:
    config.init_from, config.init_partial = str(trained.run), True
    config.model.num_tokens = 2
    started = initial_retriever(config)
    source = RetRetriever.from_pretrained(trained.exported)
    assert started.query_tower.start.shape == (1, 2, 64)
    for name, parameter in source.query_tower.named_parameters():
        if name != "start":
            assert torch.equal(started.query_tower.get_parameter(name), parameter)
    config.model.hidden_size, config.model.output_size = 32, 8
    for side in ("text", "vision"):
        config.model.backbone[side].intermediate_size = 16
    with pytest.raises(ConfigError) as raised:
        initial_retriever(config)
    assert raised.value.code == "checkpoint-nothing-fits"


def test_partial_needs_init_from(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "data=m2kr", "data.root=.", "init_partial=true") == 2
    assert "[init-partial-without-init-from]" in capsys.readouterr().err


def test_runs_of_earlier_versions_are_the_same(config: DictConfig) -> None:
    former = OmegaConf.create({key: value for key, value in config.items() if key != "init_partial"})
    assert flat(former) == flat(config)
    config.init_partial = True
    assert flat(former) != flat(config)
