"""float32 matrix multiplication on a CPU, optionally with oneDNN.

PyTorch multiplies float32 matrices with MKL, which does not use the AVX-512 units of AMD processors. oneDNN, which PyTorch
includes for convolutions and bfloat16, does. This module calls the operator that `torch.compile` emits for linear layers on
a CPU. The operator is private, so a PyTorch release may drop it; no other module depends on it.

PyTorch's own operators are used for GPUs, other dtypes, autocast, small matrices, function transforms (`torch.func`), and
under `torch.backends.mkldnn.flags(enabled=False)`. Both backends accumulate in float32 but in different order, so their
results differ in the last bits; each is deterministic. oneDNN results support first-order reverse-mode differentiation only.
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

# Below these sizes the overhead of a oneDNN call exceeds its gain. For a linear layer only the weight counts, and without
# gradients not even that, so that the result of a row does not depend on the size of its batch.
SMALLEST_WEIGHT = 1 << 14
SMALLEST_PRODUCT = 1 << 22

Backend = Literal["torch", "onednn"]
OLDEST_TORCH = (2, 8)  # earlier versions are not tested

_chosen: Backend | None = None  # None: the automatic choice


def choose_backend(name: str = "auto") -> Backend:
    """Return the backend that a setting selects on this machine.

    Args:
        name: `torch`, `onednn`, or `auto`, which selects oneDNN if the processor has AVX-512 and PyTorch is 2.8 or later and
            has the operator. The rule uses no timings, so a machine always selects the same backend.

    Raises:
        ConfigError: If `name` is `onednn` and this PyTorch lacks the operator.
    """
    if name == "onednn" and not _has_operator():
        raise ConfigError(
            f"linear_backend=onednn: PyTorch {torch.__version__} on this machine has no oneDNN operator for linear layers; set "
            "linear_backend=torch (results differ in the last bits)",
            code="linear-backend-unavailable",
            found=torch.__version__,
        )
    return _automatic() if name == "auto" else "onednn" if name == "onednn" else "torch"


@contextmanager
def linear_backend(name: str = "auto") -> Iterator[Backend]:
    """Use the backend that `choose_backend(name)` returns within the block, in all threads of the process."""
    global _chosen
    before, _chosen = _chosen, choose_backend(name)
    try:
        yield _chosen
    finally:
        _chosen = before


class Linear(nn.Linear):
    """A `torch.nn.Linear` that computes with `linear`, and so on oneDNN if the backend is selected.

    y = x W^T + b
    """

    def forward(self, inputs: Tensor) -> Tensor:
        return linear(inputs, self.weight, self.bias)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `inputs @ weight.T + bias`, as `torch.nn.functional.linear`; differentiable once.

    Args:
        inputs: (..., n), floating point.
        weight: (m, n), same dtype.
        bias: (m,), same dtype; None adds no bias.

    Returns:
        (..., m), same dtype.
    """
    if (
        (weight.numel() >= SMALLEST_WEIGHT or not torch.is_grad_enabled())
        and _is_supported(inputs, weight)
        and (bias is None or bias.dtype == torch.float32)
    ):
        return _Linear.apply(inputs, weight, bias)
    return nn.functional.linear(inputs, weight, bias)


def matmul_transposed(left: Tensor, right: Tensor) -> Tensor | None:
    """Compute `left @ right.T` with oneDNN, without gradients.

    Args:
        left: (n, d).
        right: (m, d).

    Returns:
        (n, m); None if oneDNN does not support the inputs, is not selected, or is slower for this size.
    """
    return (
        _onednn_matmul(left, right)
        if left.numel() * len(right) >= SMALLEST_PRODUCT and _is_supported(left, right)
        else None
    )


def use_onednn_matmul(module: nn.Module) -> None:
    """Replace the class of every `torch.nn.Linear` in a module by `Linear`, in place. Names and weights are unchanged.

    `Linear` is a subclass of `torch.nn.Linear`. Code that tests for the exact class, such as dynamic quantisation, skips it.
    """
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Save only what the backward pass needs: a frozen weight requires no activations.
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return _onednn_matmul(inputs, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        grads: list[Tensor | None] = [None, None, None]
        if of_inputs:
            grads[0] = _onednn_matmul(grad, weight.T)
        rows = grad.reshape(-1, grad.shape[-1])
        if of_weight:
            grads[1] = _onednn_matmul(rows.T, inputs.reshape(-1, inputs.shape[-1]).T)
        if of_bias:
            grads[2] = rows.sum(dim=0)
        return grads[0], grads[1], grads[2]


def _onednn_matmul(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    (rows, columns), (down, across) = right.shape, right.stride()
    if down < columns * across and across < rows * down:  # overlapping rows, as from `unfold`, which oneDNN rejects
        right = right.contiguous()
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


def _is_supported(left: Tensor, right: Tensor) -> bool:
    # Checked first, so that a compiled graph gets no guards on sizes: the compiler selects the operator itself.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return (
        left.device.type == "cpu" == right.device.type
        and left.dtype == torch.float32 == right.dtype
        and left.dim() > 0
        and right.dim() == 2
        and left.shape[-1] == right.shape[-1]  # otherwise PyTorch reports the error
        and left.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not _is_transformed()
        and bool(torch.backends.mkldnn.enabled)
        and (_chosen or _automatic()) == "onednn"
    )


def _is_transformed() -> bool:
    """Return whether `torch.func`, `vmap` or forward-mode differentiation is active, which `_Linear` does not support."""
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


@lru_cache(maxsize=1)
def _automatic() -> Backend:
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    fits = "AVX512" in torch.backends.cpu.get_cpu_capability() and version >= OLDEST_TORCH
    return "onednn" if fits and _has_operator() else "torch"


@lru_cache(maxsize=1)
def _has_operator() -> bool:
    """Return whether this PyTorch has the operator and the operator returns the expected result."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        product = _onednn_matmul(torch.full((2, 3), 2.0), torch.ones(4, 3), torch.ones(4))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(product, torch.full((2, 4), 7.0))
