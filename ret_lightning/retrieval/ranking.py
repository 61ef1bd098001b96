"""What a search returns, and the one rule by which passages are put in order.

The rule: by score, and of equal scores the passage that stands earlier in the pool first. trec_eval has another one, equal
scores by id; a run file says the same in both, since `break_ties` takes the ties out of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ranking:
    """The best K passages of each of Nq queries, best first.

    Args:
        rows: (Nq, K) int64, positions in the pool; -1 where fewer than K passages were found.
        scores: (Nq, K) float32, their MaxSim scores, never rising along a row; -inf where `rows` is -1.
        short: (Nq,) bool, the queries for which an approximate index found fewer than K candidates (of a smaller pool, than
            all passages); None of exact search.

    Raises:
        ValueError: if shapes or dtypes do not fit.
    """

    rows: Tensor
    scores: Tensor
    short: Tensor | None = None

    def __post_init__(self) -> None:
        if self.rows.dim() != 2 or self.rows.shape != self.scores.shape:
            raise ValueError(
                f"Ranking: rows and scores must be (Nq, K) both, got {tuple(self.rows.shape)} "
                f"and {tuple(self.scores.shape)}"
            )
        if self.rows.dtype != torch.int64 or self.scores.dtype != torch.float32:
            raise ValueError(
                f"Ranking: rows must be int64 and scores float32, got {self.rows.dtype}, {self.scores.dtype}"
            )

    def __len__(self) -> int:
        return len(self.rows)


def top_columns(scores: Tensor, k: int) -> Tensor:
    """The columns of the k largest scores of each row, best first, and of equal scores the lower column first.

    `torch.topk` leaves the order of equal numbers open and a stable sort of a whole row takes five times as long. So score
    and column are packed into one integer, in which no two are equal: the high half orders as the score does, the low half
    falls as the column rises.

    Args:
        scores: (N, M) float32, no NaN.
        k: at most M.

    Returns:
        (N, k) int64.
    """
    ordered = _to_ordered_integers(scores)
    falling = torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device)
    return ((ordered << 32) | falling).topk(k, dim=1).indices


def break_ties(scores: Tensor) -> Tensor:
    """Scores that never rise along a row, with the ties apart: each at most the next float32 below the one before it.

    Whoever orders by these numbers gets the order that they stand in, whatever becomes of equal ones there. Scores that are
    not tied stay as they are, unless a run of ties before them reaches down to them.

    Args:
        scores: (N, M) float32, finite, or -inf at the end of a row, which comes out as anything.

    Returns:
        (N, M) float32.
    """
    places = torch.arange(scores.shape[1], device=scores.device)
    # Each at most one step below its neighbour on the left, hence at most j - i steps below any score i of those.
    ordered = (_to_ordered_integers(scores) + places).cummin(dim=1).values - places
    return _from_ordered_integers(ordered)


def _to_ordered_integers(scores: Tensor) -> Tensor:
    """float32 -> int64 that orders as the numbers do, one step from each to the next; -0.0 and 0.0 are 0."""
    bits = scores.view(torch.int32)
    return torch.where(
        bits < 0, -(bits & 0x7FFFFFFF), bits
    ).long()  # a sign and a magnitude that rises as the number's does


def _from_ordered_integers(ordered: Tensor) -> Tensor:
    bits = torch.where(ordered < 0, -ordered - (1 << 31), ordered)
    return bits.int().view(torch.float32)
