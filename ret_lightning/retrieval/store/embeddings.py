"""The embeddings of a pool of passages (or of queries) with their ids."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Embeddings:
    """N items of k vectors of width d each; item `i` has the id `ids[i]` and the vectors `vectors[i]`.

    Args:
        ids: N different strings. Any sequence is taken and kept as a tuple.
        vectors: (N, k, d), float32 or float16, finite, each vector L2-normalised (which is not checked: scores are inner
            products whatever the norms are).

    Raises:
        ValueError: on another shape or dtype, an id that occurs twice, or a number that is not finite; names the item.
    """

    ids: tuple[str, ...]
    vectors: Tensor

    def __post_init__(self) -> None:
        if isinstance(self.ids, str):
            raise ValueError("Embeddings: ids must be a sequence of strings, not one string")
        object.__setattr__(self, "ids", tuple(self.ids))
        check_ids(self.ids)
        _check_vectors(self.vectors, self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Tensor) -> Tensor:
        """The vectors of some items: rows of any shape, int64, at least 0 -> (*shape, k, d), where the vectors are."""
        return self.vectors[rows.to(self.vectors.device)]

    def part(self, start: int, stop: int) -> Embeddings:
        """The items from `start` up to `stop`, not copied."""
        return Embeddings(self.ids[start:stop], self.vectors[start:stop])

    def release(self) -> None:
        """Called after each block that is read from `vectors`: a memory map gives back the pages that it has read so far."""


def check_ids(ids: tuple[str, ...]) -> None:
    """Raises ValueError where one is no string, or comes twice."""
    for row, item in enumerate(ids):
        if not isinstance(item, str):
            raise ValueError(f"Embeddings: id {item!r} of row {row} is {type(item).__name__}, not a string")
    if len(set(ids)) < len(ids):
        item, count = Counter(ids).most_common(1)[0]
        raise ValueError(f"Embeddings: id {item!r} occurs {count} times; ids must be unique")


def _check_vectors(vectors: Tensor, ids: tuple[str, ...]) -> None:
    if vectors.dim() != 3 or 0 in vectors.shape[1:]:
        raise ValueError(f"Embeddings: vectors must be (N, k, d) with k and d above 0, got {tuple(vectors.shape)}")
    if vectors.dtype not in (torch.float32, torch.float16):
        raise ValueError(f"Embeddings: vectors must be float32 or float16, got {vectors.dtype}")
    if len(vectors) != len(ids):
        raise ValueError(f"Embeddings: {len(ids)} ids for {len(vectors)} rows of vectors")
    # Block by block: the answers for all numbers at once would take half the memory of the numbers.
    finite = [torch.isfinite(block).flatten(1).all(dim=1) for block in vectors.split(4096)]
    broken = (~torch.cat(finite)).nonzero()
    if len(broken):
        raise ValueError(f"Embeddings: {len(broken)} of {len(ids)} items are not finite, first {ids[int(broken[0])]!r}")
