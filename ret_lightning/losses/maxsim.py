"""MaxSim, the late-interaction score: one function, several backends.

    score(Q, P) = sum over the vectors q of Q of  max over the vectors p of P of  <q, p>

as in ColBERT (Khattab and Zaharia, 2020, equation 3). Shapes: Nq queries of Lq vectors, Np passages of Lp vectors, width d.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "plain", "chunked"]

# The chunked backend holds the similarities of one block at a time. 2^22 float32 numbers are 16 MiB: small enough to stay
# in the last-level cache of a server CPU, large enough that a matrix product runs at full speed.
BLOCK_ELEMENTS = 1 << 22


def maxsim(
    query: Tensor,
    passage: Tensor,
    query_mask: Tensor | None = None,
    passage_mask: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Scores every query against every passage.

    Args:
        query: (Nq, Lq, d), floating point. Normalise the vectors first if cosine similarity is meant.
        passage: (Np, Lp, d), same dtype and device.
        query_mask: (Nq, Lq) bool, True where a vector counts; a masked query vector adds nothing to its sum.
        passage_mask: (Np, Lp) bool, True where a vector counts; a masked passage vector never wins a maximum, whatever
            its score. Every passage needs at least one vector that counts.
        backend: `plain` writes the formula out and holds all Nq x Np x Lq x Lp similarities: for tests. `chunked` holds
            one block of them at a time, forward and backward. `auto` is `chunked`.

    Returns:
        (Nq, Np) scores in float32 (float64 for float64 input), since sums of half-precision maxima are too coarse: at 32, a
        bfloat16 step is 0.125. Differentiable with respect to `query` and `passage`; of equal maxima the first one gets
        the gradient.

    Raises:
        ValueError: on shapes, dtypes or masks that do not fit.
    """
    _check(query, passage, query_mask, passage_mask)
    if backend == "plain":
        return _plain(query, passage, query_mask, passage_mask)
    if backend in ("auto", "chunked"):
        return _ChunkedMaxSim.apply(query, passage, query_mask, passage_mask)
    raise ValueError(f"unknown MaxSim backend {backend!r}: choose auto, plain or chunked")


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
    if passage_mask is not None and not passage_mask.any(dim=1).all():
        row = int((~passage_mask.any(dim=1)).nonzero()[0])
        raise ValueError(f"maxsim: passage {row} has no vector that counts: its mask is False everywhere")


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


class _ChunkedMaxSim(torch.autograd.Function):
    """Blocks of the similarity; of each block only the maxima's sum and, for the backward pass, their places are kept.

    The score has one non-zero derivative a (query vector, passage) pair: that of the winning passage vector. With
    w(a, i, b) the winner's index, and g the gradient of the scores,

        dQ[a, i] = sum over b of g[a, b] * P[b, w(a, i, b)]         dP[b, w(a, i, b)] += g[a, b] * Q[a, i]

    so backward costs 1 / Lp of the forward's arithmetic. Kept between the passes: Nq x Np x Lq winners of one or two bytes.
    """

    @staticmethod
    def forward(ctx, query, passage, query_mask, passage_mask):
        (n_query, len_query, width), (n_passage, len_passage, _) = query.shape, passage.shape
        dtype = _sum_dtype(query.dtype)
        scores = torch.empty(n_query, n_passage, dtype=dtype, device=query.device)
        needs_grad = any(ctx.needs_input_grad[:2])
        index_dtype = torch.uint8 if len_passage <= 256 else torch.int16 if len_passage <= 32767 else torch.int32
        winners = query.new_empty((n_query, n_passage, len_query), dtype=index_dtype) if needs_grad else None
        rows, columns = _block_shape(n_query, len_query, n_passage, len_passage)
        for i in range(0, n_query, rows):
            query_block = query[i : i + rows].reshape(-1, width)
            for j in range(0, n_passage, columns):
                passage_block = passage[j : j + columns]
                similarity = query_block @ passage_block.reshape(-1, width).T
                similarity = similarity.to(dtype).view(-1, len_query, len(passage_block), len_passage)
                if passage_mask is not None:
                    similarity.masked_fill_(~passage_mask[j : j + columns][None, None], -torch.inf)
                if needs_grad:
                    best, place = similarity.max(dim=3)
                    winners[i : i + rows, j : j + columns] = place.transpose(1, 2).to(index_dtype)
                else:
                    best = similarity.amax(dim=3)
                if query_mask is not None:
                    best = best.masked_fill(~query_mask[i : i + rows][:, :, None], 0)
                scores[i : i + rows, j : j + columns] = best.sum(dim=1)
        ctx.save_for_backward(query, passage, query_mask, winners)
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_scores):
        query, passage, query_mask, winners = ctx.saved_tensors
        (n_query, len_query, width), (n_passage, len_passage, _) = query.shape, passage.shape
        dtype = grad_scores.dtype
        grad_query = torch.zeros(n_query * len_query, width, dtype=dtype, device=query.device)
        grad_passage = torch.zeros(n_passage * len_passage, width, dtype=dtype, device=query.device)
        flat_passage = passage.reshape(-1, width).to(dtype)
        first_vector = torch.arange(n_passage, device=query.device) * len_passage
        rows = max(1, BLOCK_ELEMENTS // max(1, n_passage * len_query))
        for i in range(0, n_query, rows):
            winner = winners[i : i + rows].long() + first_vector[None, :, None]  # (rows, Np, Lq), into flat_passage
            weight = grad_scores[i : i + rows, :, None].expand_as(winner)
            if query_mask is not None:
                weight = weight * query_mask[i : i + rows, None, :]
            count = len(winner)
            # Both sums are products with one sparse matrix, (rows * Lq) x (Np * Lp), of Np non-zeros a row.
            own = torch.arange(count * len_query, device=query.device).view(count, 1, len_query).expand_as(winner)
            sparse = torch.sparse_coo_tensor(
                torch.stack([own.transpose(1, 2).reshape(-1), winner.transpose(1, 2).reshape(-1)]),
                weight.transpose(1, 2).reshape(-1),
                size=(count * len_query, n_passage * len_passage),
                check_invariants=False,  # the indices are ours; also silences a warning about not having chosen
            )
            block = slice(i * len_query, (i + count) * len_query)
            grad_query[block] = torch.sparse.mm(sparse, flat_passage)
            grad_passage += torch.sparse.mm(sparse.t(), query[i : i + rows].reshape(-1, width).to(dtype))
        return grad_query.view_as(query).to(query.dtype), grad_passage.view_as(passage).to(passage.dtype), None, None


def _block_shape(n_query: int, len_query: int, n_passage: int, len_passage: int) -> tuple[int, int]:
    """Queries and passages a block: about BLOCK_ELEMENTS similarities, as square as the shapes allow."""
    pairs = max(1, BLOCK_ELEMENTS // (len_query * len_passage))
    rows = max(1, min(n_query, int(pairs**0.5)))
    columns = max(1, min(n_passage, pairs // rows))
    return rows, columns
