"""Multi-head scaled dot-product attention.

Shape legend: N rows, k query vectors per row, L source vectors per row, H their width, h heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ret_lightning.ops.onednn_linear import Linear, linear


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017, arXiv 1706.03762, section 3.2).

        Attention(Q, K, V) = softmax(Q K^T / sqrt(H / h)) V          per head
        out = concat(head_1, ..., head_h) W_O + b_O

    Parameter names, shapes and initialisation are those of `torch.nn.MultiheadAttention`, as stored in the published
    checkpoints. The result is the same, without the copies that `MultiheadAttention` makes between layouts.

    Args:
        width: H, width of the queries, the sources and the result.
        num_heads: h, a divisor of `width`.
        dropout: Dropout probability of the attention weights in training, in [0, 1].
        bias: Whether the projections have a bias.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width)) if bias else None
        self.out_proj = Linear(width, width, bias=bias)
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, source: Tensor, padding: Tensor | None = None) -> Tensor:
        """Attend from each query vector to the source vectors.

        Args:
            query: (N, k, H) vectors.
            source: (N, L, H) vectors, from which keys and values are projected. Pass the same tensor as `query` for
                self-attention.
            padding: (N, L) bool, True for positions to ignore; None ignores none.

        Returns:
            (N, k, H).
        """
        if source is query:
            q, k, v = self._project(query, 0, 3)
        else:
            (q,) = self._project(query, 0, 1)
            k, v = self._project(source, 1, 3)
        mask = None if padding is None else ~padding[:, None, None, :]
        heads = scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out_proj(heads.transpose(1, 2).flatten(2))

    def _project(self, vectors: Tensor, first: int, stop: int) -> tuple[Tensor, ...]:
        """Compute projections `first` to `stop - 1` of (query, key, value), each (N, h, L, H / h)."""
        width = self.in_proj_weight.shape[1]
        rows = slice(first * width, stop * width)
        bias = None if self.in_proj_bias is None else self.in_proj_bias[rows]
        projected = linear(vectors, self.in_proj_weight[rows], bias)
        heads = projected.unflatten(2, (stop - first, self.num_heads, -1))  # (N, L, projections, h, H / h)
        return tuple(part.transpose(1, 2) for part in heads.unbind(2))
