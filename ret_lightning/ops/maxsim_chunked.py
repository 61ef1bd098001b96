"""MaxSim computed in blocks, on any device. Only the scores and the argmax indices are kept, not the similarities.

For each pair of query vector and passage, only the passage vector with the largest similarity has a gradient. Let
w(a, i, b) be its index in passage b for vector i of query a, and g the gradient of the scores. Then

    dQ[a, i] = sum_b g[a, b] * P[b, w(a, i, b)]
    dP[b, j] = sum over (a, i) with w(a, i, b) = j of g[a, b] * Q[a, i]

so the backward pass needs 1 / Lp of the operations of the forward pass. The forward pass saves Np x Nq x Lq indices of one or
two bytes (four if Lp > 32768). Both gradients are computed by `embedding_bag`, dP after sorting the indices of each passage,
without atomic additions, so they are deterministic on any device.

Shape legend: Nq queries of Lq vectors, Np passages of Lp vectors, vector width d. In names of tensors: Q queries, q vectors
per query, P passages, p vectors per passage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ret_lightning.ops.onednn_linear import matmul_transposed

# Similarities per block. 2^20 float32 values are 4 MiB, which stay in the CPU cache for the reduction, and the matrix
# multiplication is large enough for nearly full throughput.
BLOCK_ELEMENTS = 1 << 20
# Argmax indices per block of the backward pass, where each becomes an index of eight bytes and a weight of four.
BACKWARD_ELEMENTS = 1 << 18


class ChunkedMaxSim(torch.autograd.Function):
    """MaxSim of validated inputs with a memory-efficient backward pass.

        score(Q, P) = sum_{q in Q} max_{p in P} <q, p>

    `forward` takes query (Nq, Lq, d), passage (Np, Lp, d) and their bool masks (Nq, Lq) and (Np, Lp), each of which may be
    None. It returns (Nq, Np) scores in float32, or float64 for float64 input.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, passage: Tensor, query_mask: Tensor | None, passage_mask: Tensor | None
    ) -> Tensor:
        n_query, len_query, width = query.shape
        n_passage, len_passage, _ = passage.shape
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        # On a CPU, float32 is at least as fast as half precision, and more accurate.
        matmul_dtype = dtype if query.device.type == "cpu" else query.dtype
        flat_query = query.reshape(-1, width).to(matmul_dtype)
        scores = query.new_empty((n_query, n_passage), dtype=dtype)
        argmax_Pq = None
        if any(ctx.needs_input_grad[:2]):
            small = torch.uint8 if len_passage <= 256 else torch.int16 if len_passage <= 2**15 else torch.int32
            argmax_Pq = query.new_empty((n_passage, n_query * len_query), dtype=small)
        rows, columns = block_shape(n_query, len_query, n_passage, len_passage)
        buffer = query.new_empty(rows * len_query * columns * len_passage, dtype=dtype)
        # For the passages of a block and all queries: the maxima, and Lp minus their argmax.
        max_Pq, reversed_Pq = (query.new_empty((columns, n_query * len_query), dtype=dtype) for _ in range(2))
        # Lp, Lp - 1, ..., 1 along the first axis, so that the first of equal maxima has the largest value.
        countdown = torch.arange(len_passage, 0, -1, dtype=dtype, device=query.device)[:, None, None]
        for start in range(0, n_passage, columns):
            block = slice(start, min(start + columns, n_passage))
            block_max, block_reversed = max_Pq[: block.stop - start], reversed_Pq[: block.stop - start]
            # Vector index first, then passage: a maximum over the leading axis is vectorised on a CPU.
            flat_passage = passage[block].transpose(0, 1).reshape(-1, width).to(matmul_dtype)
            for first in range(0, n_query, rows):
                vectors = slice(first * len_query, min(first + rows, n_query) * len_query)
                similarity_pPq = _matmul(flat_passage, flat_query[vectors], buffer).unflatten(0, (len_passage, -1))
                if passage_mask is not None:
                    similarity_pPq.masked_fill_(~passage_mask[block].T[:, :, None], -torch.inf)
                torch.amax(similarity_pPq, dim=0, out=block_max[:, vectors])
                if argmax_Pq is not None:
                    similarity_pPq.eq_(block_max[:, vectors]).mul_(countdown)
                    torch.amax(similarity_pPq, dim=0, out=block_reversed[:, vectors])
            if argmax_Pq is not None:  # NaN equals nothing: clamp its index to the last vector
                argmax_Pq[block] = block_reversed.clamp_(min=1).neg_().add_(len_passage)
            if query_mask is not None:
                block_max.masked_fill_(~query_mask.flatten(), 0)
            scores[:, block] = block_max.unflatten(1, (n_query, len_query)).sum(dim=2).T
        ctx.save_for_backward(query, passage, query_mask, argmax_Pq)
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_QP: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        query, passage, query_mask, argmax_Pq = ctx.saved_tensors
        grad_query = grad_passage = None
        if ctx.needs_input_grad[0]:
            grad_query = _query_gradient(grad_QP, passage, argmax_Pq, query.shape[1]).view_as(query)
            if query_mask is not None:
                grad_query = grad_query.masked_fill(~query_mask[:, :, None], 0)
            grad_query = grad_query.to(query.dtype)
        if ctx.needs_input_grad[1]:
            if query_mask is not None:
                query = query.masked_fill(~query_mask[:, :, None], 0)
            grad_passage = _passage_gradient(grad_QP, query, argmax_Pq, passage.shape[1]).view_as(passage)
            grad_passage = grad_passage.to(passage.dtype)
        return grad_query, grad_passage, None, None


def block_shape(n_query: int, len_query: int, n_passage: int, len_passage: int) -> tuple[int, int]:
    """Return the number of queries and passages per block: about `BLOCK_ELEMENTS` similarities, as square as possible."""
    pairs = max(1, BLOCK_ELEMENTS // (len_query * len_passage))
    rows = max(1, min(n_query, int(pairs**0.5)))
    columns = max(1, min(n_passage, pairs // rows))
    return max(1, min(n_query, pairs // columns)), columns


def _matmul(left: Tensor, right: Tensor, buffer: Tensor) -> Tensor:
    """Compute `left @ right.T`, (n, m) in at least float32, in the buffer if the operator supports it."""
    if (similarities := matmul_transposed(left, right)) is not None:
        return similarities
    if left.dtype == buffer.dtype:
        return torch.mm(left, right.T, out=buffer[: len(left) * len(right)].view(len(left), len(right)))
    return torch.mm(left, right.T, out_dtype=buffer.dtype)


def _query_gradient(grad_QP: Tensor, passage: Tensor, argmax_Pq: Tensor, len_query: int) -> Tensor:
    """Return dQ, (Nq * Lq, d): for each query vector, the weighted sum of its argmax vectors."""
    n_passage, len_passage, width = passage.shape
    if n_passage == 0:
        return passage.new_zeros(argmax_Pq.shape[1], width)
    flat = passage.reshape(-1, width).to(grad_QP.dtype)
    first = torch.arange(n_passage, device=argmax_Pq.device, dtype=torch.int32) * len_passage
    total = flat.new_empty(argmax_Pq.shape[1], width)
    argmax_qP = argmax_Pq.T.contiguous()  # transposed as bytes, before conversion to int32
    for vectors in _blocks(argmax_Pq.shape[1], n_passage, len_query):
        of_rows = slice(vectors.start // len_query, vectors.stop // len_query)
        weights = grad_QP[of_rows].repeat_interleave(len_query, dim=0)
        total[vectors] = embedding_bag(argmax_qP[vectors] + first, flat, per_sample_weights=weights, mode="sum")
    return total


def _passage_gradient(grad_QP: Tensor, query: Tensor, argmax_Pq: Tensor, len_passage: int) -> Tensor:
    """Return dP, (Np * Lp, d): for each passage vector, the weighted sum of the query vectors whose argmax it is."""
    len_query, width = query.shape[1:]
    flat = query.reshape(-1, width).to(grad_QP.dtype)
    total = flat.new_empty(len(argmax_Pq) * len_passage, width)
    grad_PQ = grad_QP.T.contiguous()
    for columns in _blocks(len(argmax_Pq), argmax_Pq.shape[1], 1):
        chosen = argmax_Pq[columns]  # (passages, Nq * Lq)
        order = _argsort(chosen)
        vectors = torch.arange(len_passage, dtype=chosen.dtype, device=chosen.device).expand(len(chosen), -1)
        starts = torch.searchsorted(chosen.gather(1, order), vectors.contiguous())
        starts += torch.arange(len(chosen), device=starts.device)[:, None] * argmax_Pq.shape[1]
        weights = grad_PQ[columns].repeat_interleave(len_query, dim=1).gather(1, order)
        total[columns.start * len_passage : columns.stop * len_passage] = embedding_bag(
            order.flatten(), flat, starts.flatten(), per_sample_weights=weights.flatten(), mode="sum"
        )
    return total


def _argsort(indices: Tensor) -> Tensor:
    """Sort each row stably; return the order."""
    if indices.device.type == "cpu":  # NumPy uses a radix sort for integers of one or two bytes
        return torch.from_numpy(np.argsort(indices.numpy(), axis=1, kind="stable"))
    return indices.sort(dim=1, stable=True).indices


def _blocks(count: int, width: int, step: int) -> Iterator[slice]:
    """Yield slices of `count` rows of `width` numbers: about BACKWARD_ELEMENTS numbers and a multiple of `step` rows each."""
    rows = max(1, BACKWARD_ELEMENTS // max(1, width * step)) * step
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))
