"""MaxSim on the fused GPU kernels of late-interaction-kernels, an optional extra: `pip install 'ret_lightning[kernels]'`.

The kernels keep the similarities in on-chip memory, forward and backward. They always multiply in half precision, so they
are used for bfloat16 and float16 inputs only, and accumulate in float32.

Shape legend: Nq queries of Lq vectors, Np passages of Lp vectors, vector width d.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

LARGEST_WIDTH = 1024


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
        ValueError: If the kernels do not support these inputs or are not installed.
    """
    reason = fused_refusal(query)
    if reason is not None:
        raise ValueError(f"maxsim: backend fused {reason}; use auto or chunked")
    from late_interaction_kernels import maxsim

    # "lowmem" uses no atomic additions: it is deterministic, and returns gradients in the dtype of the inputs.
    return maxsim(query, passage, query_mask, passage_mask, normalize=False, backward="lowmem")


def fused_refusal(query: Tensor) -> str | None:
    """Return why the kernels cannot be used with such queries; None if they can."""
    if not query.is_cuda:
        return "needs tensors on a GPU"
    if query.dtype not in (torch.bfloat16, torch.float16):
        return f"needs bfloat16 or float16 vectors, got {query.dtype}"
    if query.shape[2] > LARGEST_WIDTH:
        return f"supports vectors of width {LARGEST_WIDTH} or less, got {query.shape[2]}"
    if not _is_installed():
        return "needs the package late-interaction-kernels: pip install 'ret_lightning[kernels]'"
    return None


@lru_cache(maxsize=1)
def _is_installed() -> bool:
    try:
        import late_interaction_kernels  # noqa: F401
    except ImportError:
        return False
    return True
