"""Retrievers with random weights, built from the shipped configs."""

from __future__ import annotations

from hydra import compose, initialize_config_module

from ret_lightning.config.build import build
from ret_lightning.models import RetRetriever


def random_retriever(backbone: str, *overrides: str, model: str = "ret") -> RetRetriever:
    """Build a retriever with a backbone of conf/backbone and a size of conf/model."""
    with initialize_config_module("ret_lightning.conf", version_base="1.3"):
        config = compose("train", [f"backbone={backbone}", "backbone.pretrained=null", f"model={model}", *overrides])
    return build(config.model)
