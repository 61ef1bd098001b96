"""Fixed-dimensional encodings: one vector per query or passage whose inner product estimates MaxSim.

Source: Dhulipala et al., MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings, 2024, arXiv 2405.19504, section 2.

Random hyperplanes partition the space into 2^b parts (SimHash). In each part the vectors of a query are summed and those of
a passage are averaged. The inner product of both encodings is then the sum, over the query vectors, of their inner products
with the mean of the passage vectors in the same part, which are likely the nearest ones. A part without passage vectors
takes the passage vector whose part differs in the fewest bits. Sums and means are projected to fewer dimensions by random
signs. The encoding concatenates several repetitions with independent hyperplanes and signs.

Shapes: n queries or passages of L vectors, R repetitions, b hyperplanes, projection dimension m.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FixedDimensionalEncoding:
    """The random maps of an encoding.

    Attributes:
        planes: (R, b, d) float32 normal vectors of the hyperplanes, from a normal distribution.
        signs: (R, m, d) float32 projections, -1 or 1 divided by sqrt(m), which preserve inner products in expectation.
    """

    planes: Tensor
    signs: Tensor

    @staticmethod
    def sample(width: int, repetitions: int, hyperplanes: int, projection: int, seed: int) -> FixedDimensionalEncoding:
        """Sample random maps.

        Args:
            width: vector width d.
            repetitions: number of repetitions R.
            hyperplanes: number of hyperplanes b.
            projection: projection dimension m.
            seed: random seed; the same arguments yield the same maps.
        """
        random = torch.Generator().manual_seed(seed)
        planes = torch.randn(repetitions, hyperplanes, width, generator=random)
        signs = torch.randint(0, 2, (repetitions, projection, width), generator=random) * 2.0 - 1
        return FixedDimensionalEncoding(planes, signs / projection**0.5)

    @property
    def width(self) -> int:
        """Width of an encoding: repetitions * 2^hyperplanes * projection."""
        return len(self.planes) * 2 ** self.planes.shape[1] * self.signs.shape[1]

    def encode_queries(self, vectors: Tensor) -> Tensor:
        """Encode queries, (n, L, d) -> (n, width) float32, by sums per part."""
        projected, parts = self._project(vectors)
        return self._sum_per_part(projected, parts).flatten(1)

    def encode_passages(self, vectors: Tensor) -> Tensor:
        """Encode passages, (n, L, d) -> (n, width) float32, by means per part with empty parts filled.

        The inner product of a query encoding and a passage encoding, divided by the repetitions, estimates their MaxSim
        score.
        """
        projected, parts = self._project(vectors)
        counts = self._sum_per_part(torch.ones_like(projected[..., :1]), parts)
        means = self._sum_per_part(projected, parts) / counts.clamp(min=1)
        part_numbers = torch.arange(counts.shape[2])
        bits = 2 ** torch.arange(self.planes.shape[1])
        differing = ((part_numbers[:, None, None] ^ part_numbers[:, None]) & bits != 0).sum(dim=2)
        nearest = differing[parts].argmin(dim=2)  # (n, repetitions, 2^b), ties by the first vector
        own = projected.gather(2, nearest[..., None].expand(-1, -1, -1, projected.shape[3]))
        return torch.where(counts > 0, means, own).flatten(1)

    def _project(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projected vectors (n, R, L, m) and the part of each vector (n, R, L)."""
        n, length, width = vectors.shape
        flat = vectors.reshape(-1, width).float()
        sides, projected = (
            (flat @ maps.flatten(0, 1).T).view(n, length, *maps.shape[:2]).transpose(1, 2)
            for maps in (self.planes, self.signs)
        )
        parts = ((sides > 0) * 2 ** torch.arange(self.planes.shape[1])).sum(dim=3)
        return projected, parts

    def _sum_per_part(self, values: Tensor, parts: Tensor) -> Tensor:
        """Sum values per part, (n, R, L, m) -> (n, R, 2^b, m)."""
        n, repetitions, _, width = values.shape
        total = values.new_zeros(n, repetitions, 2 ** self.planes.shape[1], width)
        return total.scatter_add_(2, parts[..., None].expand(-1, -1, -1, width), values)
