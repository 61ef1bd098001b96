"""Multi-head attention, scaled dot products of heads (Vaswani et al., 2017, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ret_lightning.ops.onednn_linear import Linear, linear


class Attention(nn.Module):
    """Attention of some vectors to others of the same width.

    The parameters are those of `torch.nn.MultiheadAttention`, of the same names and drawn alike, as the published checkpoints
    hold them; what is computed is the same, without its copies between layouts.

    Args:
        width: of the vectors and of what comes out.
        num_heads: divides `width`.
        dropout: of the attention weights, in training.
        bias: whether the projections have one.
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
        """What each vector reads.

        Args:
            query: (N, k, width).
            source: (N, L, width), the keys and values; the same tensor as `query` for self-attention.
            padding: (N, L) bool, True where a position is not to be read; None: nowhere.

        Returns:
            (N, k, width).
        """
        if source is query:
            q, k, v = self._project(query, 0, 3)
        else:
            (q,) = self._project(query, 0, 1)
            k, v = self._project(source, 1, 3)
        mask = None if padding is None else ~padding[:, None, None, :]
        read = scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out_proj(read.transpose(1, 2).flatten(2))

    def _project(self, vectors: Tensor, first: int, stop: int) -> tuple[Tensor, ...]:
        """(N, heads, L, width / heads) of each of the projections `first` up to `stop` of query, key and value."""
        width = self.in_proj_weight.shape[1]
        rows = slice(first * width, stop * width)
        bias = None if self.in_proj_bias is None else self.in_proj_bias[rows]
        projected = linear(vectors, self.in_proj_weight[rows], bias)
        heads = projected.unflatten(
            2, (stop - first, self.num_heads, -1)
        )  # (N, L, projections, heads, width of a head)
        return tuple(part.transpose(1, 2) for part in heads.unbind(2))
