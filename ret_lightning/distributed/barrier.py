"""A barrier for ranks whose work differs by more than the timeout of the default process group."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist

from ret_lightning.distributed.collectives import world_size

# The default group times out after 30 minutes, but building an index of millions of vectors takes longer. A terminated
# process closes its connections and is detected at once; a machine that loses power or its network is not.
BARRIER_TIMEOUT = timedelta(days=7)


class Barrier:
    """A gloo process group of all ranks, in addition to the default one, so that waiting does not occupy a GPU.

    All ranks must create it together. Without torch.distributed, every method returns at once.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        if world_size() > 1:
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=BARRIER_TIMEOUT))

    def wait(self) -> None:
        """Block until all ranks have called this method."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def broadcast(self, text: str) -> str:
        """Return the text of rank 0 on every rank."""
        if self._group is None:
            return text
        texts = [text]
        dist.broadcast_object_list(texts, src=0, group=self._group)
        return texts[0]

    def all_reduce_sum(self, numbers: Sequence[int]) -> list[int]:
        """Return the element-wise sums of the numbers over all ranks, on every rank."""
        if self._group is None:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(total, group=self._group)
        return total.tolist()
