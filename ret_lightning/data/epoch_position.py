"""How far training is in an epoch, in a form that does not depend on the number of ranks that continue it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Span(NamedTuple):
    """Successive batches of one size that an epoch served.

    Attributes:
        ranks: number of ranks that shared each global batch.
        batch_size: rows per rank.
        batches: how many were served. A batch of fewer rows than ranks is dropped and does not count.
    """

    ranks: int
    batch_size: int
    batches: int

    @property
    def size(self) -> tuple[int, int]:
        """Ranks and rows per rank."""
        return self.ranks, self.batch_size


@dataclass(frozen=True)
class Position:
    """How far training is in an epoch, independent of the number of ranks that continue it.

    The order of an epoch depends on the size of its global batches. Spans are therefore enough to recompute which samples
    were served, and the others can be cut into batches of any size.

    Attributes:
        epoch: counted from 0.
        spans: what the epoch served, in order. The last one has the size of the run that was at this position and may
            have no batches; empty at the start of a new run.
    """

    epoch: int = 0
    spans: tuple[Span, ...] = ()

    @property
    def batches(self) -> int:
        """Number of batches served."""
        return sum(span.batches for span in self.spans)

    def moved(self, epoch: int, batches: int, ranks: int, batch_size: int) -> Position:
        """The position in `epoch` after `batches` batches, of which those since this position have the given size."""
        earlier = [span for span in self.spans if span.batches] if epoch == self.epoch else []
        since = batches - sum(span.batches for span in earlier)
        if earlier and earlier[-1].size == (ranks, batch_size):
            since += earlier.pop().batches
        return Position(epoch, (*earlier, Span(ranks, batch_size, since)))

    def state(self) -> dict[str, Any]:
        """Plain containers for a checkpoint."""
        return {"epoch": self.epoch, "spans": [list(span) for span in self.spans]}

    @classmethod
    def of_state(cls, state: Mapping[str, Any], ranks: int, batch_size: int) -> Position:
        """The position in a checkpoint.

        Args:
            state: see `state`; or `{"epoch", "batch"}`, which earlier versions wrote.
            ranks: of the run that wrote the checkpoint, for earlier versions.
            batch_size: rows per rank of that run, for earlier versions.
        """
        spans = state["spans"] if "spans" in state else [[ranks, batch_size, state["batch"]]]
        return cls(state["epoch"], tuple(Span(*span) for span in spans))
