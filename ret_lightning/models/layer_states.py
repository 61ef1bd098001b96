"""Layer states: the hidden states of a backbone that the recurrence reads. Several towers can share them.

Shape legend: N rows in a batch, n of which have the modality, L positions, W width of a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ret_lightning.errors import ConfigError


@dataclass(frozen=True)
class LayerStates:
    """The hidden states of one modality of a batch, for several blocks of a backbone.

    Attributes:
        blocks: Mapping of 0-based block to its (n, L, W) states, before the final layer norm.
        rows: (n,) int64, ascending indices of the rows that have the modality.
        count: N.
        padding: (n, L) bool, True for padding; None if there is none.
    """

    blocks: Mapping[int, Tensor]
    rows: Tensor
    count: int
    padding: Tensor | None = None

    def __getitem__(self, block: int) -> Tensor:
        """Return the (n, L, W) states of a block.

        Raises:
            ConfigError: If the states of this block were not computed.
        """
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
        """Return the presence mask, (N, 1, 1): 1 in rows that have the modality, 0 in the others."""
        return torch.zeros(self.count, 1, 1, dtype=dtype, device=self.rows.device).index_fill(0, self.rows, 1)


@dataclass(frozen=True)
class ModalityStates:
    """The input of one step of the recurrence for one modality: the adapted states of one block.

    Attributes:
        values: (n, L, W) states.
        rows: (n,) int64, ascending indices of the rows that have the modality.
        present: (N, 1, 1), 1 in rows that have the modality, 0 in the others; same dtype as the tower's state.
        padding: (n, L) bool, True for padding; None if there is none.
    """

    values: Tensor
    rows: Tensor
    present: Tensor
    padding: Tensor | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every row of the batch has the modality."""
        return len(self.rows) == len(self.present)
