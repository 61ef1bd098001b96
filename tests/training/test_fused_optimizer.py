"""Fused optimizers: selected on a GPU, and with the clipped gradients of other optimizers under mixed precision."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer, Rprop

from ret_lightning import RetModule
from ret_lightning.training.fused_optimizer import keep_implementation, select_fused
from tests.support.tiny_training import fit, make_module

ON_GPU = [SimpleNamespace(is_cuda=True, is_floating_point=lambda: True)] * 2
ON_BOTH = [*ON_GPU, torch.zeros(1)]


class OwnAdamW(AdamW):
    """An optimizer that is not PyTorch's."""


@pytest.mark.parametrize(
    ("make", "parameters", "fused"),
    [
        (partial(AdamW, lr=1e-3), ON_GPU, True),
        (partial(AdamW, lr=1e-3, fused=None), ON_GPU, True),
        (partial(SGD, lr=1e-3), ON_GPU, True),
        (partial(AdamW, lr=1e-3, fused=False), ON_GPU, False),
        (partial(AdamW, lr=1e-3, fused=True), ON_BOTH, True),
        (partial(AdamW, lr=1e-3), ON_BOTH, None),
        (partial(AdamW, lr=1e-3, foreach=True), ON_GPU, None),
        (partial(AdamW, lr=1e-3, differentiable=True), ON_GPU, None),
        (partial(Rprop, lr=1e-3), ON_GPU, None),  # has no fused implementation
        (partial(OwnAdamW, lr=1e-3), ON_GPU, None),
        (AdamW, ON_GPU, None),
    ],
)
def test_fused_is_selected_on_gpu_only(make: partial, parameters: list, fused: bool | None) -> None:
    selected = select_fused(make, parameters)
    assert getattr(selected, "keywords", {}).get("fused") is fused
    optimizer = selected([{"params": [torch.nn.Parameter(torch.zeros(2))]}])
    assert bool(optimizer.defaults.get("fused")) == bool(fused)


class ClippedGradients(Callback):
    """Records the gradients that each step uses."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer, pl_module) -> None:
        def record(optimizer: Optimizer, *_: object) -> None:
            trained = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
            self.steps.append({name: p.grad.clone() for name, p in trained.items()})

        trainer.optimizers[0].register_step_post_hook(record)


def first_gradients(root: Path, fused: bool, logged: list[float] | None = None, **options) -> dict[str, Tensor]:
    module = make_module()
    module.make_optimizer = partial(AdamW, lr=1e-2, fused=fused)
    recorder = ClippedGradients()
    fit(root, module, max_steps=2, log_every_n_steps=1, callbacks=[recorder], **options)
    if logged is not None:
        logged.append(float(module.trainer.logged_metrics["train/gradient_norm"]))
    assert module.trainer.optimizers[0].defaults["fused"] is fused
    return recorder.steps[0]


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def norm(gradients: dict[str, Tensor]) -> float:
    return float(torch.cat([g.flatten() for g in gradients.values()]).norm())


@pytest.mark.parametrize(
    ("precision", "algorithm"), [("bf16-mixed", None), ("bf16-mixed", "value"), ("32-true", "norm")]
)
def test_clipped_gradients_equal_those_of_lightning(
    root: Path, precision: str, algorithm: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 1e-3 if algorithm == "value" else 0.05
    options = {"precision": precision, "gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
    fused, plain = first_gradients(root, True, **options), first_gradients(root, False, **options)
    monkeypatch.setattr(RetModule, "configure_gradient_clipping", LightningModule.configure_gradient_clipping)
    lightning = first_gradients(root, False, **options)
    assert_equal(fused, lightning)
    assert_equal(plain, lightning)
    if algorithm == "value":
        assert max(float(g.abs().max()) for g in fused.values()) == pytest.approx(limit)
    else:
        assert norm(fused) == pytest.approx(limit, rel=1e-4)


def test_gradients_are_not_clipped_without_limit(root: Path) -> None:
    options = {"precision": "bf16-mixed"}
    fused = first_gradients(root, True, **options)
    assert_equal(fused, first_gradients(root, False, **options))
    assert norm(fused) > 0.1


@pytest.mark.parametrize(("stored", "own"), [(None, True), (True, None), (True, False), (False, True)])
def test_resumed_optimizer_keeps_its_implementation(stored: bool | None, own: bool | None) -> None:
    weights, optimizers = [], []
    for fused in (stored, own):
        weights.append(torch.nn.Parameter(torch.ones(3)))
        optimizers.append(AdamW([weights[-1]], lr=0.1, fused=fused))
    first, second = optimizers
    keep_implementation(second)
    weights[0].grad = torch.tensor([1.0, -2.0, 3.0])
    first.step()
    weights[1].data.copy_(weights[0].data)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [second.param_groups[0][name] for name in ("fused", "lr")] == [own, 0.1]
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.zeros(1))  # creates its state
    for weight, optimizer in zip(weights, optimizers, strict=True):
        weight.grad = torch.tensor([-1.0, 0.5, 1.0])
        scaler.step(optimizer)
    torch.testing.assert_close(weights[1], weights[0])
    assert (weights[1] != 1).all()


def test_float16_gradients_are_unscaled_before_clipping(root: Path) -> None:
    """Lightning itself does not use float16 on a CPU; the plugin does."""

    def plugin() -> MixedPrecision:
        return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))

    norms: list[float] = []
    fused, plain = (
        first_gradients(root, fused, norms, plugins=[plugin()], gradient_clip_val=0.05) for fused in (True, False)
    )
    assert_equal(fused, plain)
    assert norm(fused) == pytest.approx(0.05, rel=1e-4)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert norms[0] < 100  # of the unscaled gradients
