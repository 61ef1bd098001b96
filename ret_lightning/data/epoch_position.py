"""Position within a training epoch, independent of the number of ranks that resume it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Span(NamedTuple):
    """Consecutive batches of an epoch that have the same size.

    Attributes:
        ranks: number of ranks that share each global batch.
        batch_size: rows per rank.
        batches: number of batches served, without batches of fewer rows than ranks, which are dropped.
    """

    ranks: int
    batch_size: int
    batches: int

    @property
    def size(self) -> tuple[int, int]:
        """Number of ranks and rows per rank."""
        return self.ranks, self.batch_size


@dataclass(frozen=True)
class Position:
    """Position within a training epoch, independent of the number of ranks that resume it.

    The order of an epoch depends on the size of its global batches only. The spans therefore determine which samples were
    served, and the remaining samples can be divided into batches of any size.

    Attributes:
        epoch: 0-based epoch.
        spans: the batches served so far, in order. The last span has the batch size of the run at this position and may have
            no batches. Empty at the start of a new run.
    """

    epoch: int = 0
    spans: tuple[Span, ...] = ()

    @property
    def batches(self) -> int:
        """Number of batches served."""
        return sum(span.batches for span in self.spans)

    def advance(self, epoch: int, batches: int, ranks: int, batch_size: int) -> Position:
        """Return the position after further batches.

        Args:
            epoch: 0-based epoch of the new position.
            batches: number of batches served in that epoch.
            ranks: number of ranks that shared the batches since this position.
            batch_size: rows per rank of the batches since this position.
        """
        earlier = [span for span in self.spans if span.batches] if epoch == self.epoch else []
        since = batches - sum(span.batches for span in earlier)
        if earlier and earlier[-1].size == (ranks, batch_size):
            since += earlier.pop().batches
        return Position(epoch, (*earlier, Span(ranks, batch_size, since)))

    def state(self) -> dict[str, Any]:
        """Return the position as plain containers, for a checkpoint."""
        return {"epoch": self.epoch, "spans": [list(span) for span in self.spans]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], ranks: int, batch_size: int) -> Position:
        """Restore the position of a checkpoint.

        Args:
            state: the result of `state`, or the keys `epoch` and `batch`, which earlier versions wrote.
            ranks: number of ranks of the run that wrote the checkpoint; used for earlier versions only.
            batch_size: rows per rank of that run; used for earlier versions only.
        """
        spans = state["spans"] if "spans" in state else [[ranks, batch_size, state["batch"]]]
        return cls(state["epoch"], tuple(Span(*span) for span in spans))
