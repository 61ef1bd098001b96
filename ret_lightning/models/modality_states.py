"""What the recurrence reads: the states of one modality, of the rows that have it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ModalityStates:
    """States of one depth and one modality.

    Attributes:
        values: (n, L, width), of the rows that have the modality.
        rows: (n,) int64, which rows of the batch these are, ascending.
        present: (N, 1, 1), 1 where the row has the modality, else 0; same dtype as the tower's state.
        padding: (n, L) bool, True where a position is padding; None: nowhere.
    """

    values: Tensor
    rows: Tensor
    present: Tensor
    padding: Tensor | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every row of the batch has the modality."""
        return len(self.rows) == len(self.present)
