"""Tiny models and inputs for them."""

from __future__ import annotations

import torch

from ret_lightning.models import EncoderInput, RetRetriever, build_retriever
from ret_lightning.models.backbones.clip_transformers import clip_backbone
from ret_lightning.models.gates import gate_named
from ret_lightning.models.layer_plans import Explicit
from tests.support.paths import ASSETS

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
PUBLISHED = [*sorted(ASSETS.glob("reference/*/checkpoint")), *sorted(ASSETS.glob("published/*/checkpoint"))]
BY_NAME = {folder.parent.name: folder for folder in PUBLISHED}
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


def make(gate: str, sharing: dict, trained: tuple[bool | int, bool | int], recurrence=None, **options) -> RetRetriever:
    return build_retriever(
        clip_backbone(text=TEXT, vision=VISION),
        gate=gate_named(gate),
        recurrence=recurrence or Explicit([0, 1], [0, 2]),
        num_tokens=4,
        hidden_size=32,
        num_heads=2,
        output_size=8,
        train_text=trained[0],
        train_vision=trained[1],
        **sharing,
        **options,
    )


def assert_same_function(a: RetRetriever, b: RetRetriever) -> None:
    queries, passages = batch([1, 0, 1, 1], [1, 1, 0, 1]), batch([1, 1, 0, 1], [0, 1, 1, 1], length=5, seed=1)
    with torch.no_grad():
        for ours, theirs in zip(a(queries, passages), b(queries, passages), strict=True):
            assert torch.equal(ours, theirs)


def batch(has_text: list[int], has_image: list[int], length: int = 7, seed: int = 0) -> EncoderInput:
    random = torch.Generator().manual_seed(seed)
    count = len(has_text)
    ids = torch.randint(1, 99, (count, length), generator=random)
    lengths = torch.randint(2, length + 1, (count, 1), generator=random)
    pixels = torch.randn(count, 3, 16, 16, generator=random)
    return EncoderInput.dense(
        ids, torch.arange(length)[None] < lengths, pixels, torch.tensor(has_text), torch.tensor(has_image)
    )


QUERIES = batch([1, 1, 0, 1, 1, 1, 0], [1, 0, 1, 0, 0, 1, 1])
PASSAGES = batch([1, 0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0, 0], length=5, seed=1)
