"""Tiny models."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ret_lightning.models import LSTMGate, RetRetriever, build_retriever
from ret_lightning.models.backbones.clip_transformers import clip_backbone

TEXT = {
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


@pytest.fixture
def make_retriever() -> Callable[..., RetRetriever]:
    def make(gate=LSTMGate, **options) -> RetRetriever:
        options = {"num_tokens": 4, "hidden_size": 32, "num_heads": 2, "output_size": 8, **options}
        return build_retriever(clip_backbone(text=TEXT, vision=VISION), gate=gate, **options)

    return make
