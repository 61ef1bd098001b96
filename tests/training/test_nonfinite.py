"""A non-finite loss or gradient stops the run, or skips the step and counts it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import Callback

from ret_lightning import RetModule
from ret_lightning.errors import UserError
from ret_lightning.training.module import MAX_CONSECUTIVE_SKIPS
from tests.support.tiny_training import fit, make_module


class InjectNonfinite(Callback):
    """Sets the pixels of some batches to NaN, or a gradient to infinity."""

    def __init__(self, *batches: int, gradient: bool = False) -> None:
        self.batches = batches
        self.gradient = gradient
        self.seen = -1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.seen += 1
        if self.seen in self.batches and not self.gradient:
            batch.queries.pixel_values.fill_(float("nan"))

    def on_after_backward(self, trainer, pl_module) -> None:
        if self.seen in self.batches and self.gradient:
            next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(float("inf"))


class WeightRecorder(Callback):
    def __init__(self) -> None:
        self.after: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module: RetModule, outputs, batch, batch_idx) -> None:
        self.after.append(torch.cat([p.detach().flatten() for p in pl_module.parameters()]))


def test_nonfinite_features_stop_the_run(root: Path) -> None:
    with pytest.raises(UserError) as error:
        fit(root, make_module(), callbacks=[InjectNonfinite(2)])
    assert (error.value.code, error.value.side) == ("features-not-finite", "queries")


def test_nonfinite_gradient_stops_before_the_step(root: Path) -> None:
    weights = WeightRecorder()
    with pytest.raises(UserError) as error:
        fit(root, module := make_module(), callbacks=[InjectNonfinite(2, gradient=True), weights])
    assert (error.value.code, error.value.step) == ("gradient-not-finite", 3)
    assert torch.equal(torch.cat([p.detach().flatten() for p in module.parameters()]), weights.after[-1])


@pytest.mark.parametrize("gradient", [False, True])
def test_skipped_step_keeps_weights_and_optimizer(root: Path, gradient: bool) -> None:
    weights, module = WeightRecorder(), make_module(on_nonfinite="skip")
    fit(root, module, callbacks=[InjectNonfinite(1, 4, gradient=gradient), weights])  # six batches
    assert module.skipped_steps == 2
    assert torch.equal(weights.after[1], weights.after[0])
    assert torch.equal(weights.after[4], weights.after[3])
    assert not torch.equal(weights.after[2], weights.after[1])
    assert all(torch.isfinite(after).all() for after in weights.after)


def test_nonfinite_accumulated_batch_skips_its_step(root: Path) -> None:
    weights, module = WeightRecorder(), make_module(on_nonfinite="skip")
    fit(root, module, callbacks=[InjectNonfinite(0), weights], accumulate_grad_batches=3)  # two steps
    assert module.skipped_steps == 1
    assert torch.equal(weights.after[2], weights.after[0])
    assert torch.isfinite(weights.after[-1]).all()
    assert not torch.equal(weights.after[-1], weights.after[2])


def test_too_many_consecutive_skips_stop_the_run(root: Path) -> None:
    module = make_module(on_nonfinite="skip")
    with pytest.raises(UserError) as error:
        fit(root, module, callbacks=[InjectNonfinite(*range(30))], max_epochs=10)
    assert (error.value.code, error.value.skipped) == ("too-many-skipped-steps", MAX_CONSECUTIVE_SKIPS)


def test_skip_count_is_stored_in_checkpoint() -> None:
    module, other, content = make_module(), make_module(), {}
    module.skipped_steps = 7
    module.on_save_checkpoint(content)
    other.on_load_checkpoint(content)
    assert other.skipped_steps == 7
