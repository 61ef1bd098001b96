"""What a search returns, and the one rule by which passages are put in order."""

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

    Raises:
        ValueError: if shapes or dtypes do not fit.
    """

    rows: Tensor
    scores: Tensor

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
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0.0, which equals 0.0, into its bits
    ordered = torch.where(
        bits < 0, bits ^ 0x7FFFFFFF, bits
    ).long()  # the bits of negative floats rise as the value falls
    falling = torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device)
    return ((ordered << 32) | falling).topk(k, dim=1).indices
