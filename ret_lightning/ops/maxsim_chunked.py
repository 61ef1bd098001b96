"""MaxSim block by block, on any device: of the similarities only the maxima's sums and places outlive a block.

The score has one non-zero derivative a (query vector, passage) pair: that of the winning passage vector. With w(a, i, b)
the place of the winner among the vectors of passage b, and g the gradient of the scores,

    dQ[a, i] = sum over b of g[a, b] * P[b, w(a, i, b)]         dP[b, w(a, i, b)] += g[a, b] * Q[a, i]

so backward costs 1 / Lp of the forward's arithmetic. Kept between the passes: Np x Nq x Lq places of one or two bytes. Both
sums are sums over bags of rows, dQ's as the places stand, dP's once each passage's places are sorted; no atomic addition
takes part, so both are deterministic on any device.

Shapes in names: Q queries, q vectors a query, P passages, p vectors a passage.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ret_lightning.ops.onednn_linear import inner_products

# Similarities a block. 2^20 float32 numbers are 4 MiB: what follows the matrix product finds them near the cores, and
# the product is still large enough to run at nearly full speed.
BLOCK_ELEMENTS = 1 << 20
# Places a block of the backward pass, where each becomes an index of eight bytes and a weight of four.
BACKWARD_ELEMENTS = 1 << 18


class ChunkedMaxSim(torch.autograd.Function):
    """`maxsim` of checked inputs; see `ret_lightning.ops.maxsim`."""

    @staticmethod
    def forward(ctx, query: Tensor, passage: Tensor, query_mask: Tensor | None, passage_mask: Tensor | None) -> Tensor:
        n_query, len_query, width = query.shape
        n_passage, len_passage, _ = passage.shape
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        # A CPU multiplies float32 at least as fast as half precision, and rounds less.
        products_of = dtype if query.device.type == "cpu" else query.dtype
        flat_query = query.reshape(-1, width).to(products_of)
        scores = query.new_empty((n_query, n_passage), dtype=dtype)
        places = None
        if any(ctx.needs_input_grad[:2]):
            small = torch.uint8 if len_passage <= 256 else torch.int16 if len_passage <= 2**15 else torch.int32
            places = query.new_empty((n_passage, n_query * len_query), dtype=small)
        rows, columns = block_shape(n_query, len_query, n_passage, len_passage)
        buffer = query.new_empty(rows * len_query * columns * len_passage, dtype=dtype)
        # Of the passages of a block and all queries: the maxima, and Lp less the places where they stand.
        best_Pq, left_Pq = (query.new_empty((columns, n_query * len_query), dtype=dtype) for _ in range(2))
        # From Lp down to 1 along the first axis: of equal maxima, the first has the largest number.
        countdown = torch.arange(len_passage, 0, -1, dtype=dtype, device=query.device)[:, None, None]
        for start in range(0, n_passage, columns):
            of_columns = slice(start, min(start + columns, n_passage))
            best, left = best_Pq[: of_columns.stop - start], left_Pq[: of_columns.stop - start]
            # All first vectors, then all second ones: a maximum over a leading axis fills a CPU's vector registers.
            others = passage[of_columns].transpose(0, 1).reshape(-1, width).to(products_of)
            for first in range(0, n_query, rows):
                vectors = slice(first * len_query, min(first + rows, n_query) * len_query)
                similarity_pPq = _products(others, flat_query[vectors], buffer).unflatten(0, (len_passage, -1))
                if passage_mask is not None:
                    similarity_pPq.masked_fill_(~passage_mask[of_columns].T[:, :, None], -torch.inf)
                torch.amax(similarity_pPq, dim=0, out=best[:, vectors])
                if places is not None:
                    similarity_pPq.eq_(best[:, vectors]).mul_(countdown)
                    torch.amax(similarity_pPq, dim=0, out=left[:, vectors])
            if places is not None:  # a NaN equals nothing: its place is the last
                places[of_columns] = left.clamp_(min=1).neg_().add_(len_passage)
            if query_mask is not None:
                best.masked_fill_(~query_mask.flatten(), 0)
            scores[:, of_columns] = best.unflatten(1, (n_query, len_query)).sum(dim=2).T
        ctx.save_for_backward(query, passage, query_mask, places)
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_QP: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        query, passage, query_mask, places = ctx.saved_tensors
        grad_query = grad_passage = None
        if ctx.needs_input_grad[0]:
            grad_query = _of_queries(grad_QP, passage, places, query.shape[1]).view_as(query)
            if query_mask is not None:
                grad_query = grad_query.masked_fill(~query_mask[:, :, None], 0)
            grad_query = grad_query.to(query.dtype)
        if ctx.needs_input_grad[1]:
            if query_mask is not None:
                query = query.masked_fill(~query_mask[:, :, None], 0)
            grad_passage = _of_passages(grad_QP, query, places, passage.shape[1]).view_as(passage).to(passage.dtype)
        return grad_query, grad_passage, None, None


def block_shape(n_query: int, len_query: int, n_passage: int, len_passage: int) -> tuple[int, int]:
    """Queries and passages a block: about BLOCK_ELEMENTS similarities, as square as the shapes allow."""
    pairs = max(1, BLOCK_ELEMENTS // (len_query * len_passage))
    rows = max(1, min(n_query, int(pairs**0.5)))
    columns = max(1, min(n_passage, pairs // rows))
    return max(1, min(n_query, pairs // columns)), columns


def _products(left: Tensor, right: Tensor, buffer: Tensor) -> Tensor:
    """(n, m) inner products of rows, at least float32, in the buffer where the device can do it."""
    if (similarities := inner_products(left, right)) is not None:
        return similarities
    if left.dtype == buffer.dtype:
        return torch.mm(left, right.T, out=buffer[: len(left) * len(right)].view(len(left), len(right)))
    return torch.mm(left, right.T, out_dtype=buffer.dtype)


def _of_queries(grad_QP: Tensor, passage: Tensor, places: Tensor, len_query: int) -> Tensor:
    """(Nq * Lq, d): for each query vector the sum of the vectors that it chose, weighted."""
    n_passage, len_passage, width = passage.shape
    if n_passage == 0:
        return passage.new_zeros(places.shape[1], width)
    flat = passage.reshape(-1, width).to(grad_QP.dtype)
    first = torch.arange(n_passage, device=places.device, dtype=torch.int32) * len_passage
    total = flat.new_empty(places.shape[1], width)
    of_vectors = places.T.contiguous()  # turned while a place is a byte, not while it is a full index
    for vectors in _blocks(places.shape[1], n_passage, len_query):
        of_rows = slice(vectors.start // len_query, vectors.stop // len_query)
        weights = grad_QP[of_rows].repeat_interleave(len_query, dim=0)
        total[vectors] = embedding_bag(of_vectors[vectors] + first, flat, per_sample_weights=weights, mode="sum")
    return total


def _of_passages(grad_QP: Tensor, query: Tensor, places: Tensor, len_passage: int) -> Tensor:
    """(Np * Lp, d): for each passage vector the sum of the query vectors that chose it, weighted."""
    len_query, width = query.shape[1:]
    flat = query.reshape(-1, width).to(grad_QP.dtype)
    total = flat.new_empty(len(places) * len_passage, width)
    grad_PQ = grad_QP.T.contiguous()
    for columns in _blocks(len(places), places.shape[1], 1):
        chosen = places[columns]  # (passages, Nq * Lq)
        order = _sorted(chosen)
        vectors = torch.arange(len_passage, dtype=chosen.dtype, device=chosen.device).expand(len(chosen), -1)
        starts = torch.searchsorted(chosen.gather(1, order), vectors.contiguous())
        starts += torch.arange(len(chosen), device=starts.device)[:, None] * places.shape[1]
        weights = grad_PQ[columns].repeat_interleave(len_query, dim=1).gather(1, order)
        total[columns.start * len_passage : columns.stop * len_passage] = embedding_bag(
            order.flatten(), flat, starts.flatten(), per_sample_weights=weights.flatten(), mode="sum"
        )
    return total


def _sorted(chosen: Tensor) -> Tensor:
    """The stable order of each row's places."""
    if chosen.device.type == "cpu":  # numpy sorts numbers of one or two bytes by radix, six times faster
        return torch.from_numpy(np.argsort(chosen.numpy(), axis=1, kind="stable"))
    return chosen.sort(dim=1, stable=True).indices


def _blocks(count: int, width: int, step: int) -> Iterator[slice]:
    """Stretches of `count` rows of `width` numbers, of about BACKWARD_ELEMENTS numbers, a multiple of `step` rows each."""
    rows = max(1, BACKWARD_ELEMENTS // max(1, width * step)) * step
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))
