"""Tiny models."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ret_lightning.models import LSTMGate, RetRetriever, build_retriever
from ret_lightning.models.backbones.clip_transformers import clip_backbone
from tests.support.tiny_models import TEXT, VISION


@pytest.fixture
def make_retriever() -> Callable[..., RetRetriever]:
    def make(gate=LSTMGate, **options) -> RetRetriever:
        options = {"num_tokens": 4, "hidden_size": 32, "num_heads": 2, "output_size": 8, **options}
        return build_retriever(clip_backbone(text=TEXT, vision=VISION), gate=gate, **options)

    return make
