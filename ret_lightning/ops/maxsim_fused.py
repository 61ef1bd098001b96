"""MaxSim on the fused GPU kernels of late-interaction-kernels, an optional extra: `pip install 'ret_lightning[kernels]'`.

The kernels keep the similarities in on-chip memory, forward and backward. They always multiply in half precision, so they
are used for bfloat16 and float16 inputs only, and accumulate in float32.

Shape legend: Nq queries of Lq vectors, Np passages of Lp vectors, vector width d.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

import torch
from torch import Tensor

log = logging.getLogger(__name__)

LARGEST_WIDTH = 1024
_CANNOT_RUN = "cannot run its kernels"
OFFSET_LIMIT = 2**31  # the kernels compute offsets in 32 bits


def fused_maxsim(query: Tensor, passage: Tensor, query_mask: Tensor | None, passage_mask: Tensor | None) -> Tensor:
    """Compute MaxSim scores of validated inputs with the fused kernels.

    Args:
        query: (Nq, Lq, d) bfloat16 or float16 on a GPU.
        passage: (Np, Lp, d), same dtype and device.
        query_mask: (Nq, Lq) bool, True for vectors to use; None uses all.
        passage_mask: (Np, Lp) bool, True for vectors to use; None uses all.

    Returns:
        (Nq, Np) float32 scores.

    Raises:
        ValueError: If the kernels do not support these inputs, are not installed, or cannot run on this machine.
    """
    reason = fused_refusal(query, passage)
    if reason is not None:
        raise ValueError(f"maxsim: backend fused {reason}; use auto or chunked")
    from late_interaction_kernels import maxsim

    # "lowmem" uses no atomic additions: it is deterministic, and returns gradients in the dtype of the inputs.
    return maxsim(query, passage, query_mask, passage_mask, normalize=False, backward="lowmem")


def fused_refusal(query: Tensor, passage: Tensor) -> str | None:
    """Return why the kernels cannot be used with such queries and passages; None if they can.

    The first call per device and dtype compiles and tries the kernels.
    """
    if not query.is_cuda:
        return "needs tensors on a GPU"
    if query.dtype not in (torch.bfloat16, torch.float16):
        return f"needs bfloat16 or float16 vectors, got {query.dtype}"
    if query.shape[2] > LARGEST_WIDTH:
        return f"supports vectors of width {LARGEST_WIDTH} or less, got {query.shape[2]}"
    if not _is_installed():
        return "needs the package late-interaction-kernels: pip install 'ret_lightning[kernels]'"
    (n_query, len_query, width), (n_passage, len_passage, _) = query.shape, passage.shape
    # Elements of the queries, the passages and the argmax indices.
    elements = max(n_query * len_query * width, n_passage * len_passage * width, n_query * n_passage * len_query)
    if elements >= OFFSET_LIMIT:
        return (
            f"supports less than {OFFSET_LIMIT} elements, got {elements} for {n_query} x {n_passage} pairs of "
            f"{len_query} x {len_passage} vectors of width {width}"
        )
    if (error := _kernel_error(query.device, query.dtype)) is not None:
        return f"{_CANNOT_RUN} on {query.device}: {error}"
    return None


def select_backend(query: Tensor, passage: Tensor) -> Literal["fused", "chunked"]:
    """Return the backend for `auto`; log once why installed kernels cannot run."""
    reason = fused_refusal(query, passage)
    if reason is not None and reason.startswith(_CANNOT_RUN):
        _warn(reason)
    return "fused" if reason is None else "chunked"


@cache
def _warn(reason: str) -> None:
    log.warning(
        "maxsim: backend fused %s; the slower backend chunked is used; loss.backend=chunked selects it without this warning "
        "[fused-kernels-unusable]",
        reason,
    )


@cache
def _kernel_error(device: torch.device, dtype: torch.dtype) -> str | None:
    """Try the kernels once per process, device and dtype; return the error in one line, or None.

    Triton compiles the kernels at the first call, which needs a C compiler and a GPU and driver that it supports.
    """
    try:
        from late_interaction_kernels import maxsim

        with torch.inference_mode(False), torch.enable_grad():
            query, passage = (torch.ones(2, 2, 16, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
            scores = maxsim(query, passage, None, None, normalize=False, backward="lowmem")
            torch.autograd.grad(scores.sum(), (query, passage))
        found = scores.tolist()
        error = None if found == [[32.0, 32.0]] * 2 else f"wrong scores {found}, expected 32"
    except Exception as raised:  # of Triton, the C compiler, the driver or CUDA
        text = str(raised).strip()
        error = f"{type(raised).__name__}: {text.splitlines()[0]}" if text else type(raised).__name__
    return error


@cache
def _is_installed() -> bool:
    try:
        import late_interaction_kernels  # noqa: F401
    except ImportError:
        return False
    return True
