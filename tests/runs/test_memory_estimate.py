"""Memory estimate of a run, compared with the tensors of a real training step."""

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
from ret_lightning.runs.memory_estimate import estimate_footprint, measure_activations
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
def test_estimate_matches_a_training_step(overrides: list[str]) -> None:
    settings = config(*overrides)
    estimate = estimate_footprint(settings)
    torch.manual_seed(0)
    module = RetModule(
        build(settings.model), build(settings.loss), build(settings.optimizer), build(settings.scheduler)
    )
    parameters = list(module.retriever.parameters())
    assert estimate.parameters == sum(p.numel() for p in parameters)
    rows = EncoderInput.dense(
        torch.randint(1, 1000, (4, 77)), torch.ones(4, 77, dtype=torch.bool), torch.randn(4, 3, 40, 40)
    )
    optimizer = module.make_optimizer([{"params": [p for p in parameters if p.requires_grad]}])
    query, passage = module.retriever.train()(rows, rows)
    module.loss(EncodedBatch(query, passage, torch.arange(4))).loss.backward()
    optimizer.step()
    assert estimate.gradients == sum(p.grad.numel() * 4 for p in parameters if p.grad is not None)
    assert estimate.optimizer == sum(
        v.numel() * v.element_size() for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)
    )
    kept, vectors = measure_activations(module.retriever, rows)
    tokens = vectors.shape[-2] if vectors.dim() == 3 else 1
    own = 2 * 4 * tokens * vectors.shape[-1] * 4 + 2 * 4 * 4 * tokens
    # The meta device has no fused attention, which stores less; everything else must match.
    frozen = not any(p.requires_grad for p in module.retriever.query_tower.vision_backbone.parameters())
    assert kept <= estimate.activations - own <= kept * (1.0 if frozen else 1.15)


def test_micro_batches_and_ranks() -> None:
    whole, micro = (
        estimate_footprint(config("data.batch_size=32")),
        estimate_footprint(config("data.batch_size=32", "micro_batch=8")),
    )
    shared = 2 * 32 * 8 * 64 * 4 + 2 * 32 * 32 * 8  # embeddings of the batch, and argmax indices
    assert micro.rows == 8
    assert micro.activations - shared == (whole.activations - shared) // 4
    two = estimate_footprint(config("data.batch_size=32", "trainer=ddp_cpu"))
    assert two.ranks == 2
    assert two.activations - whole.activations == shared
    half = estimate_footprint(config("data.batch_size=32", "trainer.precision=bf16-mixed"))
    assert half.activations - shared == (whole.activations - shared) // 2


def test_nothing_is_downloaded_or_allocated() -> None:
    estimate = estimate_footprint(config("model=ret", "backbone=clip_vit_l"))
    assert estimate.parameters > 400e6
    assert (
        estimate.trained == 2 * 47_395_840
    )  # published tower without backbones, tests/models/backbones/test_full_size.py
