"""Initial model of a run: all or some weights of init_from."""

from __future__ import annotations

import logging

import pytest
import torch
from omegaconf import DictConfig

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.runs.initial_model import initial_retriever
from tests.support.small_runs import Trained

pytestmark = pytest.mark.slow  # the tests share one run of ret-train


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("run", "init_from: {run}/checkpoints/best.ckpt, step 5 (best by val/mean/recall@5: "),
        ("run/checkpoints/last.ckpt", "init_from: {run}/checkpoints/last.ckpt, step 5 (named explicitly)"),
        ("exported", "init_from: weights of {exported} (the step is not recorded)"),
    ],
)
def test_log_has_file_and_step(
    trained: Trained, config: DictConfig, caplog: pytest.LogCaptureFixture, source: str, message: str
) -> None:
    config.init_from = str(trained.run.parent / source)
    with caplog.at_level(logging.INFO):
        initial_retriever(config)
    assert message.format(run=trained.run, exported=trained.exported) in caplog.text


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("exported/model.safetensors", "{exported}"),
        ("exported/config.json", "{exported}"),
        ("run/checkpoints/best.safetensors", "{run}"),
    ],
)
def test_weights_file_is_refused(trained: Trained, config: DictConfig, file: str, hint: str) -> None:
    config.init_from = str(trained.run.parent / file)
    for load in (lambda: initial_retriever(config), lambda: RetRetriever.from_pretrained(config.init_from)):
        with pytest.raises(UserError) as raised:
            load()
        assert raised.value.code == "checkpoint-not-a-folder"
        assert str(raised.value.path) == config.init_from
        assert hint.format(run=trained.run, exported=trained.exported) in raised.value.message


def test_matching_weights_are_loaded(trained: Trained, config: DictConfig) -> None:
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
