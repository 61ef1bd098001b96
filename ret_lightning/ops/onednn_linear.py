"""Matrix multiplication of float32 on a CPU, optionally by oneDNN.

PyTorch multiplies float32 matrices by MKL, which leaves the AVX-512 units of AMD's processors idle. oneDNN, which PyTorch
ships for convolutions and bfloat16, uses them (benchmark: onednn_linear.py). The operator called here is the one that
`torch.compile` emits for linear layers on a CPU; it is private, so that a release of PyTorch may drop it. This module is the
only one that knows it, and `linear_backend` decides whether it is used.

Everything else (GPUs, other dtypes, autocast, small matrices) is PyTorch's own, and so is all of it under
`torch.backends.mkldnn.flags(enabled=False)`. Both backends sum in float32, in another order; each returns the same bits every
time. oneDNN's results can be differentiated once, backwards; under `torch.func` and the like PyTorch's own operators are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ret_lightning.errors import ConfigError

# Below these oneDNN's preparation of a call costs more than its speed gains, measured on one and two threads. Of a linear map
# the weight alone decides, not the rows, and without gradients not even that: a row then comes out the same whatever batch, or
# rank, it is in, while MKL with two threads multiplies few rows another way.
SMALLEST_WEIGHT = 1 << 14
SMALLEST_PRODUCT = 1 << 22

Backend = Literal["torch", "onednn"]
OLDEST_TORCH = (2, 8)  # not tried below

_chosen: Backend | None = None  # None: the automatic choice


def choose_backend(name: str = "auto") -> Backend:
    """The backend that a setting selects on this machine.

    Args:
        name: `torch`, `onednn`, or `auto`: oneDNN if the processor has AVX-512, PyTorch is 2.8 or later and has the operator. A
            rule, not a timing, so that the same machine always computes the same.

    Raises:
        ConfigError: for `onednn` where this PyTorch lacks the operator.
    """
    if name == "onednn" and not _has_operator():
        raise ConfigError(
            f"linear_backend=onednn: PyTorch {torch.__version__} on this machine has no oneDNN operator for linear layers; use "
            "linear_backend=torch, whose results differ in the last bits",
            code="linear-backend-unavailable",
            found=torch.__version__,
        )
    return _automatic() if name == "auto" else "onednn" if name == "onednn" else "torch"


@contextmanager
def linear_backend(name: str = "auto") -> Iterator[Backend]:
    """Multiply by the backend that `choose_backend` returns within the block, in all threads of the process."""
    global _chosen
    before, _chosen = _chosen, choose_backend(name)
    try:
        yield _chosen
    finally:
        _chosen = before


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`."""

    def forward(self, inputs: Tensor) -> Tensor:
        return linear(inputs, self.weight, self.bias)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """inputs @ weight.T + bias, as `torch.nn.functional.linear`, differentiable once.

    Args:
        inputs: (..., n), floating point.
        weight: (m, n), same dtype.
        bias: (m,), same dtype.

    Returns:
        (..., m).
    """
    if (
        (weight.numel() >= SMALLEST_WEIGHT or not torch.is_grad_enabled())
        and _is_served(inputs, weight)
        and (bias is None or bias.dtype == torch.float32)
    ):
        return _Linear.apply(inputs, weight, bias)
    return nn.functional.linear(inputs, weight, bias)


def inner_products(left: Tensor, right: Tensor) -> Tensor | None:
    """(n, m) inner products of the rows of (n, d) and (m, d), without gradients; None where PyTorch is to compute them."""
    return _multiply(left, right) if left.numel() * len(right) >= SMALLEST_PRODUCT and _is_served(left, right) else None


def multiply_by_products(module: nn.Module) -> None:
    """Compute every `torch.nn.Linear` in a module by `linear`, in place; names and weights stay.

    Each becomes a `Linear`, which is a `torch.nn.Linear`; what looks for exactly that class, as dynamic quantisation does,
    passes it over.
    """
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Only what the backward pass wants: a frozen weight keeps no activations.
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return _multiply(inputs, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        grads: list[Tensor | None] = [None, None, None]
        if of_inputs:
            grads[0] = _multiply(grad, weight.T)
        rows = grad.reshape(-1, grad.shape[-1])
        if of_weight:
            grads[1] = _multiply(rows.T, inputs.reshape(-1, inputs.shape[-1]).T)
        if of_bias:
            grads[2] = rows.sum(dim=0)
        return tuple(grads)


def _multiply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    (rows, columns), (down, across) = right.shape, right.stride()
    if down < columns * across and across < rows * down:  # rows that overlap, as of `unfold`; oneDNN refuses them
        right = right.contiguous()
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


def _is_served(left: Tensor, right: Tensor) -> bool:
    # First of all, so that a compiled graph has no guard on sizes that decide nothing: the compiler chooses for itself.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return (
        left.device.type == "cpu" == right.device.type
        and left.dtype == torch.float32 == right.dtype
        and left.dim() > 0
        and right.dim() == 2
        and left.shape[-1] == right.shape[-1]  # what does not fit, PyTorch tells of
        and left.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not _is_transformed()
        and torch.backends.mkldnn.enabled
        and (_chosen or _automatic()) == "onednn"
    )


def _is_transformed() -> bool:
    """Whether `torch.func`, `vmap` or forward-mode differentiation is at work, which `_Linear` does not serve."""
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


@lru_cache(maxsize=1)
def _automatic() -> Backend:
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    fits = "AVX512" in torch.backends.cpu.get_cpu_capability() and version >= OLDEST_TORCH
    return "onednn" if fits and _has_operator() else "torch"


@lru_cache(maxsize=1)
def _has_operator() -> bool:
    """Whether this PyTorch has the operator, and it computes what is expected of it."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        product = _multiply(torch.full((2, 3), 2.0), torch.ones(4, 3), torch.ones(4))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(product, torch.full((2, 4), 7.0))
