"""MaxSim, the late-interaction score of ColBERT, with several backends.

Shape legend: Nq queries of Lq vectors, Np passages of Lp vectors, vector width d. In names of tensors: Q queries, q vectors
per query, P passages, p vectors per passage.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ret_lightning.ops.maxsim_chunked import ChunkedMaxSim
from ret_lightning.ops.maxsim_fused import fused_maxsim, select_backend

Backend = Literal["auto", "plain", "chunked", "fused"]


def maxsim(
    query: Tensor,
    passage: Tensor,
    query_mask: Tensor | None = None,
    passage_mask: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Compute the MaxSim score of every query with every passage.

        score(Q, P) = sum_{q in Q} max_{p in P} <q, p>

    This is equation 3 of ColBERT (Khattab and Zaharia, 2020, arXiv 2004.12832).

    Args:
        query: (Nq, Lq, d) floating-point vectors; L2-normalise them first to score by cosine similarity. Under GPU autocast,
            float32 vectors are multiplied in half precision, as in other matrix multiplications.
        passage: (Np, Lp, d), same dtype and device as `query`.
        query_mask: (Nq, Lq) bool, True for vectors to use. A masked query vector adds nothing to the sum.
        passage_mask: (Np, Lp) bool, True for vectors to use. A masked passage vector is never the maximum. Every query and
            every passage needs at least one vector that is not masked.
        backend: `plain` evaluates the formula with all Nq x Np x Lq x Lp similarities in memory, for tests. `chunked`
            computes them block by block in the forward and backward pass, on any device. `fused` is a GPU kernel for half
            precision that needs the extra `kernels`. `auto` selects `fused` if it can run with these inputs, otherwise
            `chunked`. All backends are deterministic.

    Returns:
        (Nq, Np) scores in float32, or float64 for float64 input. Half precision would be too coarse: near 32, adjacent
        bfloat16 values differ by 0.125. Differentiable with respect to `query` and `passage`; among equal maxima, the first
        receives the gradient.

    Raises:
        ValueError: If shapes, dtypes or masks are inconsistent, or the backend is unknown or unavailable.
    """
    _check(query, passage, query_mask, passage_mask)
    if query.is_cuda and query.dtype == torch.float32 and torch.is_autocast_enabled("cuda"):
        query, passage = (vectors.to(torch.get_autocast_dtype("cuda")) for vectors in (query, passage))
    if len(query) == 0 or len(passage) == 0:
        backend = "plain"  # the kernels do not support empty inputs
    if backend == "auto":
        backend = select_backend(query, passage)
    if backend == "plain":
        return _plain(query, passage, query_mask, passage_mask)
    if backend == "chunked":
        return ChunkedMaxSim.apply(query, passage, query_mask, passage_mask)
    if backend == "fused":
        return fused_maxsim(query, passage, query_mask, passage_mask)
    raise ValueError(f"maxsim: unknown backend {backend!r}; expected auto, plain, chunked or fused")


def _check(query: Tensor, passage: Tensor, query_mask: Tensor | None, passage_mask: Tensor | None) -> None:
    for name, vectors, mask in (("query", query, query_mask), ("passage", passage, passage_mask)):
        if vectors.dim() != 3:
            raise ValueError(f"maxsim: expected {name} of shape (N, L, d), got {tuple(vectors.shape)}")
        if not vectors.is_floating_point():
            raise ValueError(f"maxsim: expected a floating-point {name}, got {vectors.dtype}")
        if vectors.shape[1] == 0:
            raise ValueError(f"maxsim: expected at least one vector per {name}, got shape {tuple(vectors.shape)}")
        if mask is not None and (mask.shape != vectors.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"maxsim: expected a bool {name}_mask of shape {tuple(vectors.shape[:2])}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )
    if query.shape[2] != passage.shape[2]:
        raise ValueError(f"maxsim: query width {query.shape[2]} and passage width {passage.shape[2]} differ")
    if query.dtype != passage.dtype:
        raise ValueError(
            f"maxsim: query dtype {query.dtype} and passage dtype {passage.dtype} differ; cast one of them"
        )
    for name, mask in (("query", query_mask), ("passage", passage_mask)):
        if mask is not None and not mask.any(dim=1).all():
            row = int((~mask.any(dim=1)).nonzero()[0])
            raise ValueError(f"maxsim: all vectors of {name} {row} are masked; expected at least one True in its mask")


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _plain(query: Tensor, passage: Tensor, query_mask: Tensor | None, passage_mask: Tensor | None) -> Tensor:
    dtype = _sum_dtype(query.dtype)
    similarity_QPqp = torch.einsum("aqd,bpd->abqp", query.to(dtype), passage.to(dtype))
    if passage_mask is not None:
        similarity_QPqp = similarity_QPqp.masked_fill(~passage_mask[None, :, None, :], -torch.inf)
    best_QPq = similarity_QPqp.max(dim=3).values  # not amax, which splits the gradient among ties
    if query_mask is not None:
        best_QPq = best_QPq.masked_fill(~query_mask[:, None, :], 0)
    return best_QPq.sum(dim=2)
