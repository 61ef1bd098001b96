"""MaxSim, the late-interaction score: one function, several backends.

    score(Q, P) = sum over the vectors q of Q of  max over the vectors p of P of  <q, p>

as in ColBERT (Khattab and Zaharia, 2020, equation 3). Shapes: Nq queries of Lq vectors, Np passages of Lp vectors, width d.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ret_lightning.ops.maxsim_chunked import ChunkedMaxSim
from ret_lightning.ops.maxsim_fused import fused_maxsim, fused_refusal

Backend = Literal["auto", "plain", "chunked", "fused"]


def maxsim(
    query: Tensor,
    passage: Tensor,
    query_mask: Tensor | None = None,
    passage_mask: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Scores every query against every passage.

    Args:
        query: (Nq, Lq, d), floating point. Normalise the vectors first if cosine similarity is meant. Under autocast on a GPU
            float32 vectors are multiplied in half precision, as all matrices are there.
        passage: (Np, Lp, d), same dtype and device.
        query_mask: (Nq, Lq) bool, True where a vector counts; a masked query vector adds nothing to its sum.
        passage_mask: (Np, Lp) bool, True where a vector counts; a masked passage vector never wins a maximum, whatever
            its score. Every query and every passage needs at least one vector that counts.
        backend: `plain` writes the formula out and holds all Nq x Np x Lq x Lp similarities: for tests. `chunked` holds
            one block of them at a time, forward and backward, on any device. `fused` keeps them on the chip: half
            precision on a GPU, with the extra `kernels`. `auto` is `fused` where that can be, else `chunked`. All are
            deterministic.

    Returns:
        (Nq, Np) scores in float32 (float64 for float64 input), since sums of half-precision maxima are too coarse: at 32, a
        bfloat16 step is 0.125. Differentiable with respect to `query` and `passage`; of equal maxima the first one gets
        the gradient.

    Raises:
        ValueError: on shapes, dtypes or masks that do not fit.
    """
    _check(query, passage, query_mask, passage_mask)
    if query.is_cuda and query.dtype == torch.float32 and torch.is_autocast_enabled("cuda"):
        query, passage = (vectors.to(torch.get_autocast_dtype("cuda")) for vectors in (query, passage))
    if len(query) == 0 or len(passage) == 0:
        backend = "plain"  # of no rows; kernels are not made for that
    if backend == "auto":
        backend = "chunked" if fused_refusal(query) else "fused"
    if backend == "plain":
        return _plain(query, passage, query_mask, passage_mask)
    if backend == "chunked":
        return ChunkedMaxSim.apply(query, passage, query_mask, passage_mask)
    if backend == "fused":
        return fused_maxsim(query, passage, query_mask, passage_mask)
    raise ValueError(f"unknown MaxSim backend {backend!r}: choose auto, plain, chunked or fused")


def _check(query: Tensor, passage: Tensor, query_mask: Tensor | None, passage_mask: Tensor | None) -> None:
    for name, vectors, mask in (("query", query, query_mask), ("passage", passage, passage_mask)):
        if vectors.dim() != 3:
            raise ValueError(f"maxsim: {name} must be (N, L, d), got shape {tuple(vectors.shape)}")
        if not vectors.is_floating_point():
            raise ValueError(f"maxsim: {name} must be floating point, got {vectors.dtype}")
        if vectors.shape[1] == 0:
            raise ValueError(f"maxsim: {name} has no vectors: shape {tuple(vectors.shape)}")
        if mask is not None and (mask.shape != vectors.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"maxsim: {name}_mask must be bool of shape {tuple(vectors.shape[:2])}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )
    if query.shape[2] != passage.shape[2]:
        raise ValueError(f"maxsim: query width {query.shape[2]} and passage width {passage.shape[2]} differ")
    if query.dtype != passage.dtype:
        raise ValueError(f"maxsim: query is {query.dtype} and passage is {passage.dtype}; cast one of them")
    for name, mask in (("query", query_mask), ("passage", passage_mask)):
        if mask is not None and not mask.any(dim=1).all():
            row = int((~mask.any(dim=1)).nonzero()[0])
            raise ValueError(f"maxsim: {name} {row} has no vector that counts: its mask is False everywhere")


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _plain(query: Tensor, passage: Tensor, query_mask: Tensor | None, passage_mask: Tensor | None) -> Tensor:
    dtype = _sum_dtype(query.dtype)
    similarity_QPqp = torch.einsum("aqd,bpd->abqp", query.to(dtype), passage.to(dtype))
    if passage_mask is not None:
        similarity_QPqp = similarity_QPqp.masked_fill(~passage_mask[None, :, None, :], -torch.inf)
    best_QPq = similarity_QPqp.max(dim=3).values  # max, not amax: the gradient goes to one winner, not to all that tie
    if query_mask is not None:
        best_QPq = best_QPq.masked_fill(~query_mask[:, None, :], 0)
    return best_QPq.sum(dim=2)
