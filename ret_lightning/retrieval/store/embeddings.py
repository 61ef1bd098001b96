"""Embeddings of passages or queries with their ids.

Shapes: N items of k vectors of width d.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Embeddings:
    """N items of k vectors of width d. Item `i` has the id `ids[i]` and the vectors `vectors[i]`.

    Args:
        ids: N unique strings; any sequence is accepted and stored as a tuple.
        vectors: (N, k, d) float32 or float16, finite. Vectors should be L2-normalised, which is not checked.

    Raises:
        ValueError: if the shape or dtype is invalid, an id is not unique or not a string, or an item is not finite.
    """

    ids: tuple[str, ...]
    vectors: Tensor

    def __post_init__(self) -> None:
        if isinstance(self.ids, str):
            raise ValueError("Embeddings: ids: expected a sequence of strings, got one string")
        object.__setattr__(self, "ids", tuple(self.ids))
        check_ids(self.ids)
        _check_vectors(self.vectors, self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Tensor) -> Tensor:
        """Return the vectors of items.

        Args:
            rows: int64 tensor of any shape, values of at least 0.

        Returns:
            (*rows.shape, k, d) tensor on the device of `vectors`.
        """
        return self.vectors[rows.to(self.vectors.device)]

    def part(self, start: int, stop: int) -> Embeddings:
        """Return the items from `start` up to but excluding `stop`, without a copy."""
        return Embeddings(self.ids[start:stop], self.vectors[start:stop])

    def release(self) -> None:
        """Release the memory of pages read so far, if `vectors` is memory-mapped; call it after each block read."""


def check_ids(ids: tuple[str, ...]) -> None:
    """Raise ValueError if an id is not a string or not unique."""
    for row, item in enumerate(ids):
        if not isinstance(item, str):
            raise ValueError(f"Embeddings: id {item!r} of row {row}: expected str, got {type(item).__name__}")
    if len(set(ids)) < len(ids):
        item, count = Counter(ids).most_common(1)[0]
        raise ValueError(f"Embeddings: id {item!r} occurs {count} times; ids must be unique")


def _check_vectors(vectors: Tensor, ids: tuple[str, ...]) -> None:
    if vectors.dim() != 3 or 0 in vectors.shape[1:]:
        raise ValueError(
            f"Embeddings: expected vectors of shape (N, k, d) with k and d above 0, got {tuple(vectors.shape)}"
        )
    if vectors.dtype not in (torch.float32, torch.float16):
        raise ValueError(f"Embeddings: expected float32 or float16 vectors, got {vectors.dtype}")
    if len(vectors) != len(ids):
        raise ValueError(f"Embeddings: expected one id per row, got {len(ids)} ids and {len(vectors)} rows of vectors")
    # In blocks: a boolean mask of all elements would take half the memory of float16 vectors.
    finite = [torch.isfinite(block).flatten(1).all(dim=1) for block in vectors.split(4096)]
    broken = (~torch.cat(finite)).nonzero()
    if len(broken):
        raise ValueError(
            f"Embeddings: {len(broken)} of {len(ids)} items are not finite, the first is {ids[int(broken[0])]!r}"
        )
