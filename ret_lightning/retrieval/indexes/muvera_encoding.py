"""Fixed-dimensional encodings: one vector a query or passage whose inner product estimates MaxSim (Dhulipala et al., MUVERA:
Multi-Vector Retrieval via Fixed Dimensional Encodings, 2024, arXiv 2405.19504, section 2).

Random hyperplanes cut the space into 2^b parts (SimHash). In each part a query's vectors are summed and a passage's are
averaged: then the inner product of the two encodings is the sum, over the query's vectors, of their products with the mean of
the passage's vectors in the same part, which are likely the nearest ones. A part in which a passage has no vector takes the
one whose part differs in the fewest bits. The means are projected by random signs to fewer dimensions, and all is done
several times over, with other hyperplanes and signs, and put side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FixedDimensionalEncoding:
    """The random maps of an encoding.

    Attributes:
        planes: (repetitions, hyperplanes, d) float32, from a normal distribution.
        signs: (repetitions, projection, d) float32, of -1 and 1, divided by sqrt(projection), so that inner products are kept
            on average.
    """

    planes: Tensor
    signs: Tensor

    @staticmethod
    def sample(width: int, repetitions: int, hyperplanes: int, projection: int, seed: int) -> FixedDimensionalEncoding:
        """Maps for vectors of a width, the same for the same arguments."""
        random = torch.Generator().manual_seed(seed)
        planes = torch.randn(repetitions, hyperplanes, width, generator=random)
        signs = torch.randint(0, 2, (repetitions, projection, width), generator=random) * 2.0 - 1
        return FixedDimensionalEncoding(planes, signs / projection**0.5)

    @property
    def width(self) -> int:
        """Numbers an encoding has: repetitions * 2^hyperplanes * projection."""
        return len(self.planes) * 2 ** self.planes.shape[1] * self.signs.shape[1]

    def encode_queries(self, vectors: Tensor) -> Tensor:
        """(n, L, d) -> (n, width) float32: sums a part."""
        projected, parts = self._project(vectors)
        return self._sum_per_part(projected, parts).flatten(1)

    def encode_passages(self, vectors: Tensor) -> Tensor:
        """(n, L, d) -> (n, width) float32: means a part, an empty one filled in. The inner product of a query's encoding with
        a passage's, divided by the repetitions, estimates their MaxSim."""
        projected, parts = self._project(vectors)
        numbers = self._sum_per_part(torch.ones_like(projected[..., :1]), parts)
        means = self._sum_per_part(projected, parts) / numbers.clamp(min=1)
        every = torch.arange(numbers.shape[2])
        bits = 2 ** torch.arange(self.planes.shape[1])
        differing = ((every[:, None, None] ^ every[:, None]) & bits != 0).sum(dim=2)
        nearest = differing[parts].argmin(dim=2)  # (n, repetitions, 2^b), of equally near vectors the first
        own = projected.gather(2, nearest[..., None].expand(-1, -1, -1, projected.shape[3]))
        return torch.where(numbers > 0, means, own).flatten(1)

    def _project(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(n, repetitions, L, projection), and the part of each vector, (n, repetitions, L)."""
        n, length, width = vectors.shape
        flat = vectors.reshape(-1, width).float()
        sides, projected = (
            (flat @ maps.flatten(0, 1).T).view(n, length, *maps.shape[:2]).transpose(1, 2)
            for maps in (self.planes, self.signs)
        )
        parts = ((sides > 0) * 2 ** torch.arange(self.planes.shape[1])).sum(dim=3)
        return projected, parts

    def _sum_per_part(self, values: Tensor, parts: Tensor) -> Tensor:
        """(n, repetitions, L, m) -> (n, repetitions, 2^b, m): added up a part."""
        n, repetitions, _, width = values.shape
        total = values.new_zeros(n, repetitions, 2 ** self.planes.shape[1], width)
        return total.scatter_add_(2, parts[..., None].expand(-1, -1, -1, width), values)
