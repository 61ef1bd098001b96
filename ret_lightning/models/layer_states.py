"""Layer states: what a backbone produces and the recurrence reads. One value serves any number of towers.

Shapes: N rows in a batch, n of them have the modality, L positions, width of a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ret_lightning.errors import ConfigError


@dataclass(frozen=True)
class LayerStates:
    """The states of one modality of a batch, block by block.

    Attributes:
        blocks: 0-based block to its (n, L, width) states, before the final layer norm.
        rows: (n,) int64, which rows of the batch have the modality, ascending.
        count: N.
        padding: (n, L) bool, True where a position is padding; None: nowhere.
    """

    blocks: Mapping[int, Tensor]
    rows: Tensor
    count: int
    padding: Tensor | None = None

    def __getitem__(self, block: int) -> Tensor:
        """The (n, L, width) states of a block; raises ConfigError where they were not computed."""
        if block not in self.blocks:
            raise ConfigError(
                f"layer states: block {block} was not computed; computed: {', '.join(map(str, self.blocks))}; pass the plan of "
                "every tower that reads the states to Backbone.states",
                code="layer-states-missing",
                found=block,
                allowed=tuple(self.blocks),
            )
        return self.blocks[block]

    def present(self, dtype: torch.dtype) -> Tensor:
        """(N, 1, 1), 1 where the row has the modality, else 0."""
        return torch.zeros(self.count, 1, 1, dtype=dtype, device=self.rows.device).index_fill(0, self.rows, 1)


@dataclass(frozen=True)
class ModalityStates:
    """What one step of the recurrence reads of one modality: the adapted states of one block.

    Attributes:
        values: (n, L, width).
        rows: (n,) int64, as in `LayerStates`.
        present: (N, 1, 1), 1 where the row has the modality, else 0; same dtype as the tower's state.
        padding: (n, L) bool, as in `LayerStates`.
    """

    values: Tensor
    rows: Tensor
    present: Tensor
    padding: Tensor | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every row of the batch has the modality."""
        return len(self.rows) == len(self.present)
