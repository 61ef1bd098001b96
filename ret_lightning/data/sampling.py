"""Which rows make which batch on which rank: every row once an epoch over all ranks, another order each epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class GlobalBatches(Sampler[list[tuple[int, int]]]):
    """This rank's share of the global batches of an epoch.

    The rows are shuffled by seed and epoch alone and cut into global batches of `batch_size` rows a rank. Each rank takes
    its stretch of every batch, so W ranks with batches of B see what one rank with batches of W * B sees. The rows of a
    last, smaller batch are dealt out as evenly as they go; fewer rows than ranks are dropped, since a rank
    without rows could not take part in the step.

    Args:
        rows: how many rows there are.
        batch_size: rows a batch and rank.
        seed: of the order.
        rank: of this process.
        world_size: how many ranks.
        shuffle: whether the order changes with the epoch, or is that of the file.

    Yields:
        Lists of (epoch, row): what a row turns into may depend on the epoch (augmentation), never on the worker.
    """

    def __init__(
        self, rows: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1, shuffle: bool = True
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.epoch = 0
        self._skipped = 0
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order; Lightning calls it at the start of each epoch."""
        self.epoch = epoch

    def skip(self, batches: int) -> None:
        """Leaves out so many first batches of the next iteration, and of that one only."""
        self._skipped = batches

    def __len__(self) -> int:
        whole, rest = divmod(self.rows, self.batch_size * self.world_size)
        return whole + (rest >= self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self._batches(self.epoch)  # the epoch as it is now, not when the first batch is asked for

    def _batches(self, epoch: int) -> Iterator[list[tuple[int, int]]]:
        # Not before a batch is asked for: a loader with workers makes an iterator that it never uses.
        first, self._skipped = self._skipped, 0
        order = np.arange(self.rows)
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        size = self.batch_size * self.world_size
        for index in range(first, len(self)):
            share = np.array_split(order[index * size : (index + 1) * size], self.world_size)[self.rank]
            yield [(epoch, int(row)) for row in share]


class RankRows(Sampler[int]):
    """Every world_size-th row, in order: each row on exactly one rank, none twice.

    Args:
        rows: how many rows there are.
        rank: of this process.
        world_size: how many ranks.
    """

    def __init__(self, rows: int, rank: int = 0, world_size: int = 1) -> None:
        self.range = range(rank, rows, world_size)

    def __len__(self) -> int:
        return len(self.range)

    def __iter__(self) -> Iterator[int]:
        return iter(self.range)
