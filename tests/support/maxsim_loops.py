"""A reference implementation of MaxSim with plain loops, and random inputs for it."""

from __future__ import annotations

import torch
from torch import Tensor


def by_loops(query: Tensor, passage: Tensor, query_mask: Tensor | None = None, passage_mask: Tensor | None = None):
    scores = torch.zeros(len(query), len(passage), dtype=torch.float64)
    for a in range(len(query)):
        for b in range(len(passage)):
            for i in range(query.shape[1]):
                if query_mask is not None and not query_mask[a, i]:
                    continue
                similarities = [
                    float(query[a, i].double() @ passage[b, j].double())
                    for j in range(passage.shape[1])
                    if passage_mask is None or passage_mask[b, j]
                ]
                scores[a, b] += max(similarities)
    return scores


def tensors(n_query=5, len_query=3, n_passage=4, len_passage=6, width=8, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(n_query, len_query, width, dtype=dtype), torch.randn(n_passage, len_passage, width, dtype=dtype)
