"""MaxSim by the fused GPU kernels of late-interaction-kernels, an optional extra: `pip install 'ret_lightning[kernels]'`.

The similarities never leave the chip, forward and backward. The kernels multiply in half precision whatever they are given,
so they are for bfloat16 and float16 inputs; sums are in float32.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

LARGEST_WIDTH = 1024


def fused_maxsim(query: Tensor, passage: Tensor, query_mask: Tensor | None, passage_mask: Tensor | None) -> Tensor:
    """`maxsim` of checked inputs; see `ret_lightning.ops.maxsim`.

    Raises:
        ValueError: if the kernels cannot serve these inputs here.
    """
    reason = fused_refusal(query)
    if reason is not None:
        raise ValueError(f"maxsim: backend fused {reason}; choose auto or chunked")
    from late_interaction_kernels import maxsim

    # Of its two backward passes the one without atomic additions: deterministic, and gradients in the inputs' dtype.
    return maxsim(query, passage, query_mask, passage_mask, normalize=False, backward="lowmem")


def fused_refusal(query: Tensor) -> str | None:
    """Why the kernels cannot serve such inputs, or None where they can."""
    if not query.is_cuda:
        return "needs tensors on a GPU"
    if query.dtype not in (torch.bfloat16, torch.float16):
        return f"multiplies in half precision, and these vectors are {query.dtype}"
    if query.shape[2] > LARGEST_WIDTH:
        return f"serves vectors of at most {LARGEST_WIDTH} numbers, and these have {query.shape[2]}"
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
