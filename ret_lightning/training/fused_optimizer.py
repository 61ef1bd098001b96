"""Fused optimizers: their selection on a GPU, and gradient clipping with them under mixed precision.

A fused optimizer updates all parameters in a few kernels. It can also unscale float16 gradients in its step, which is why
Lightning's `MixedPrecision` does not clip gradients for it, not even under bfloat16, where gradients are not scaled.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def select_fused(make_optimizer: MakeOptimizer, parameters: Iterable[Tensor]) -> MakeOptimizer:
    """Select the fused implementation of an optimizer of PyTorch if all parameters are on a CUDA device.

    Args:
        make_optimizer: function from parameter groups to an optimizer. A `functools.partial` of a class of `torch.optim`
            that has the argument `fused` is completed by `fused=True`, unless it sets `fused` or another implementation
            (`foreach`, `differentiable`); any other function is returned unchanged.
        parameters: the parameters to optimize.

    Returns:
        A function from parameter groups to an optimizer.
    """
    if not isinstance(make_optimizer, partial) or not all(p.is_cuda and p.is_floating_point() for p in parameters):
        return make_optimizer
    optimizer, settings = make_optimizer.func, make_optimizer.keywords
    if not isinstance(optimizer, type) or not optimizer.__module__.startswith("torch.optim."):
        return make_optimizer
    if "fused" not in inspect.signature(optimizer).parameters or settings.get("fused") is not None:
        return make_optimizer
    if settings.get("foreach") or settings.get("differentiable"):  # the implementations exclude each other
        return make_optimizer
    return partial(make_optimizer, fused=True)


def keep_implementation(optimizer: torch.optim.Optimizer) -> None:
    """Keep the implementation of an optimizer (`fused`, `foreach`) when the state of a run with another one is loaded.

    Loading replaces the settings of the parameter groups. A run that moves to or from a GPU would keep the implementation of
    the other device, which may not support this one.
    """
    own = {name: optimizer.defaults[name] for name in ("fused", "foreach") if name in optimizer.defaults}

    def set_own(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "param_groups": [{**group, **own} for group in state["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(set_own)


def unscale_gradients(plugin: Precision, optimizer: torch.optim.Optimizer) -> None:
    """Unscale float16 gradients of a fused optimizer before they are clipped; Lightning does so for other optimizers.

    Args:
        plugin: precision plugin of the trainer.
        optimizer: the optimizer about to step; its step does not unscale the gradients again.
    """
    scaler = getattr(plugin, "scaler", None)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        scaler.unscale_(optimizer)


def clip_unscaled_gradients(
    plugin: MixedPrecision, optimizer: torch.optim.Optimizer, clip_val: float | None, algorithm: str | None
) -> None:
    """Clip gradients as Lightning does, with any optimizer.

    Args:
        plugin: mixed-precision plugin of the trainer.
        optimizer: the optimizer, whose gradients are not scaled.
        clip_val: largest norm or absolute value; None or 0: no clipping.
        algorithm: `norm` or `value`; None is `norm`.
    """
    # The method of the base class, without the check for fused optimizers.
    Precision.clip_gradients(plugin, optimizer, clip_val or 0.0, GradClipAlgorithmType(algorithm or "norm"))
