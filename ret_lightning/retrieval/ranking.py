"""The result of a search, and the rule that orders passages.

Passages are ordered by descending score; passages with equal scores by their position in the candidate pool. trec_eval
instead orders equal scores by id. `break_ties` removes ties before a run file is written, so that both rules agree.

Shapes: Nq queries, K ranked passages per query; N rows of M scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ranking:
    """The best K passages of each of Nq queries, best first.

    Args:
        rows: (Nq, K) int64 positions in the candidate pool; -1 where fewer than K passages were found.
        scores: (Nq, K) float32 MaxSim scores, non-increasing along each row; -inf where `rows` is -1.
        short: (Nq,) bool, True for queries with fewer than min(K, N) candidates from an approximate index, where N is the
            size of the pool. None for exact search.

    Raises:
        ValueError: if shapes or dtypes do not match.
    """

    rows: Tensor
    scores: Tensor
    short: Tensor | None = None

    def __post_init__(self) -> None:
        if self.rows.dim() != 2 or self.rows.shape != self.scores.shape:
            raise ValueError(
                f"Ranking: expected rows and scores of one shape (Nq, K), got {tuple(self.rows.shape)} "
                f"and {tuple(self.scores.shape)}"
            )
        if self.rows.dtype != torch.int64 or self.scores.dtype != torch.float32:
            raise ValueError(
                f"Ranking: expected int64 rows and float32 scores, got {self.rows.dtype} and {self.scores.dtype}"
            )

    def __len__(self) -> int:
        return len(self.rows)


def top_columns(scores: Tensor, k: int) -> Tensor:
    """Return the column indices of the k largest scores of each row.

    Equal scores are ordered by column. `torch.topk` does not define the order of equal values, and a stable sort of the
    whole row is slower. Score and column are therefore packed into one int64 key: the high half orders by score, the low
    half by descending column, and no two keys are equal.

    Args:
        scores: (N, M) float32, without NaN.
        k: number of columns, at most M.

    Returns:
        (N, k) int64, best first.
    """
    ordered = _to_ordered_integers(scores)
    descending = torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device)
    return ((ordered << 32) | descending).topk(k, dim=1).indices


def break_ties(scores: Tensor) -> Tensor:
    """Return scores that are strictly decreasing along each row.

    Each score is lowered to at most the next smaller float32 below its left neighbor. Sorting by the result reproduces the
    order of the columns under any rule for ties. Scores that are not tied are unchanged, unless the lowered scores before
    them reach their value.

    Args:
        scores: (N, M) float32, non-increasing along each row and finite; trailing -inf entries have an undefined result.

    Returns:
        (N, M) float32.
    """
    columns = torch.arange(scores.shape[1], device=scores.device)
    # Adding the column turns "at least one step below the left neighbor" into a cumulative minimum.
    ordered = (_to_ordered_integers(scores) + columns).cummin(dim=1).values - columns
    return _from_ordered_integers(ordered)


def _to_ordered_integers(scores: Tensor) -> Tensor:
    """Map float32 to int64 so that integer order equals numeric order and neighboring floats differ by 1; -0.0 maps to 0."""
    bits = scores.view(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits).long()


def _from_ordered_integers(ordered: Tensor) -> Tensor:
    bits = torch.where(ordered < 0, -ordered - (1 << 31), ordered)
    return bits.int().view(torch.float32)
