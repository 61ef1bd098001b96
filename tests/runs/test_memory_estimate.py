"""What a run would take, told without it, against what is there when it is built."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.utils import setup_globals
from omegaconf import DictConfig

from ret_lightning.config import resolvers
from ret_lightning.config.build import build
from ret_lightning.inputs import EncoderInput
from ret_lightning.losses import EncodedBatch
from ret_lightning.runs.memory_estimate import footprint, kept_activations
from ret_lightning.training.module import RetModule


def config(*overrides: str) -> DictConfig:
    resolvers.register_resolvers()
    setup_globals()
    with initialize_config_module("ret_lightning.conf", version_base="1.3"):
        return compose("train", overrides=["output_dir=unused", "data.batch_size=4", *overrides])


OPTIONS = [
    [],
    ["model.share_towers=true", "gate=none", "optimizer=sgd"],
    ["model.train_text=false", "model.train_vision=false", "optimizer.lr=1e-2"],
    ["model.train_vision=1", "model.pooled=true", "recurrence=last"],
    ["model.cell_per_step=true", "model.output_size=0", "model.dropout=0", "model.attention_dropout=0"],
]


@pytest.mark.parametrize("overrides", OPTIONS, ids=lambda options: " ".join(options) or "default")
def test_it_is_what_a_real_step_takes(overrides: list[str]) -> None:
    settings = config(*overrides)
    told = footprint(settings)
    torch.manual_seed(0)
    module = RetModule(
        build(settings.model), build(settings.loss), build(settings.optimizer), build(settings.scheduler)
    )
    parameters = list(module.retriever.parameters())
    assert told.parameters == sum(p.numel() for p in parameters)
    rows = EncoderInput.dense(
        torch.randint(1, 1000, (4, 77)), torch.ones(4, 77, dtype=torch.bool), torch.randn(4, 3, 40, 40)
    )
    optimizer = module.make_optimizer([{"params": [p for p in parameters if p.requires_grad]}])
    query, passage = module.retriever.train()(rows, rows)
    module.loss(EncodedBatch(query, passage, torch.arange(4))).loss.backward()
    optimizer.step()
    assert told.gradients == sum(p.grad.numel() * 4 for p in parameters if p.grad is not None)
    assert told.optimizer == sum(
        v.numel() * v.element_size() for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)
    )
    kept, vectors = kept_activations(module.retriever, rows)
    tokens = vectors.shape[-2] if vectors.dim() == 3 else 1
    own = 2 * 4 * tokens * vectors.shape[-1] * 4 + 2 * 4 * 4 * tokens
    # The meta device has no fused attention, which keeps less; nothing else may differ.
    frozen = not any(p.requires_grad for p in module.retriever.query_tower.vision_backbone.parameters())
    assert kept <= told.activations - own <= kept * (1.0 if frozen else 1.15)


def test_pieces_and_ranks() -> None:
    whole, pieces = (
        footprint(config("data.batch_size=32")),
        footprint(config("data.batch_size=32", "micro_batch=8")),
    )
    shared = 2 * 32 * 8 * 64 * 4 + 2 * 32 * 32 * 8  # the batch's vectors, and the winners
    assert pieces.rows == 8
    assert pieces.activations - shared == (whole.activations - shared) // 4
    two = footprint(config("data.batch_size=32", "trainer=ddp_cpu"))
    assert two.ranks == 2
    assert two.activations - whole.activations == shared
    half = footprint(config("data.batch_size=32", "trainer.precision=bf16-mixed"))
    assert half.activations - shared == (whole.activations - shared) // 2


def test_nothing_is_fetched_or_allocated() -> None:
    told = footprint(config("model=ret", "backbone=clip_vit_l"))
    assert told.parameters > 400e6
    assert (
        told.trained == 2 * 47_395_840
    )  # a published tower without its backbones, see tests/models/backbones/test_full_size.py
