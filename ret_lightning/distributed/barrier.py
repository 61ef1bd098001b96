"""Where ranks wait for each other, however long one of them takes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from ret_lightning.distributed.collectives import world_size

# The ranks' own group gives up after half an hour, under NCCL by killing the process. An index of millions of vectors takes
# longer, and so may a rank with more to encode than the others. A process that ends is noticed at once, whatever stands here;
# a machine that loses power or its network is not: TCP closes no connection then, and the others wait until somebody ends them.
PATIENCE = timedelta(days=7)


class Barrier:
    """A group of all ranks beside the default one, by gloo, so that no GPU waits; made on all of them together.

    Where torch.distributed is not in use, nobody is waited for.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if world_size() > 1 else None

    def wait(self) -> None:
        """Goes on when all ranks have come here."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def from_first(self, text: str) -> str:
        """The first rank's text, on all of them."""
        if self._group is None:
            return text
        texts = [text]
        dist.broadcast_object_list(texts, src=0, group=self._group)
        return texts[0]

    def sums(self, numbers: Sequence[int]) -> list[int]:
        """Of each number the sum over the ranks, on all of them."""
        if self._group is None:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(total, group=self._group)
        return total.tolist()
