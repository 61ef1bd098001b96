"""Synthetic clustered embeddings, for benchmarks of indexes without a trained model.

Each passage has a latent vector of RANK dimensions:

- topics: one per 50 passages on average, with Zipf-distributed sizes, grouped around one hub per eight topics;
- within a topic, passages are normally distributed with a covariance whose spectrum falls as 1 / sqrt(i);
- 5 % of the passages are near-duplicates: the latent vector of another passage plus a tenth of the spread.

Vector t of k is the sum of a projection of the latent vector that all positions share, a projection of position t, a direction
of position t that all passages share (as from the learned query tokens of ReT), and full-rank noise. All vectors are
normalised.

The latent vector of a query is that of its gold passage plus QUERY_SPREAD times the spread within a topic. Its projections
differ slightly from those of the passages, as those of two towers do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

RANK = 48
PASSAGES_A_TOPIC = 50
DUPLICATES = 0.05
QUERY_SPREAD = 1.5
# Shares of a vector's squared norm: direction of its position, shared and own projection of the latent vector, noise.
POSITION, SHARED, OWN, NOISE = 0.25, 0.25, 0.25, 0.25
CHUNK = 2048  # passages generated at a time, each chunk with its own seed


@dataclass(frozen=True, eq=False)
class Clustered:
    """Synthetic passages and queries.

    Attributes:
        count: number of passages.
        chunk: returns passages i * CHUNK to (i + 1) * CHUNK - 1, (CHUNK, k, d) float16.
        queries: (Nq, k, d) float32.
        gold: (Nq,) int64, the gold passage of each query.
    """

    count: int
    chunk: Callable[[int], Tensor]
    queries: Tensor
    gold: Tensor


def make_clustered(passages: int, queries: int, k: int = 32, d: int = 128, seed: int = 0) -> Clustered:
    """Generate passages and queries; equal arguments return equal values.

    Args:
        passages: N.
        queries: Nq; their gold passages are distinct.
        k: vectors per row.
        d: width of a vector.
        seed: of the generator.
    """
    random = torch.Generator().manual_seed(seed)

    def sample(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    topics = max(2, passages // PASSAGES_A_TOPIC)
    hubs = sample(max(1, topics // 8), RANK)
    centers = hubs[torch.randint(len(hubs), (topics,), generator=random)] + 0.7 * sample(topics, RANK)
    spectrum = torch.arange(1, RANK + 1).pow(-0.5)
    spectrum *= (RANK / spectrum.square().sum()).sqrt()
    rotation = torch.linalg.qr(sample(RANK, RANK)).Q  # all topics share axes of spread other than the coordinate axes
    sizes = 1 / torch.arange(1, topics + 1).pow(0.5)
    topic = torch.multinomial(sizes, passages, replacement=True, generator=random)
    latent = centers[topic] + 0.8 * (sample(passages, RANK) * spectrum) @ rotation
    duplicates = (torch.rand(passages, generator=random) < DUPLICATES).nonzero()[:, 0]
    originals = torch.randint(passages, (len(duplicates),), generator=random)
    latent[duplicates] = latent[originals] + 0.08 * (sample(len(duplicates), RANK) * spectrum) @ rotation
    maps = sample(RANK, d), sample(k, RANK, d), normalize(sample(k, d), dim=-1)
    query_maps = tuple(0.95 * part + 0.3 * part.std() * sample(*part.shape) for part in maps)
    gold = torch.randperm(passages, generator=random)[:queries]
    query_latent = latent[gold] + QUERY_SPREAD * 0.8 * (sample(len(gold), RANK) * spectrum) @ rotation

    def chunk(number: int) -> Tensor:
        rows = latent[number * CHUNK : (number + 1) * CHUNK]
        return _vectors(rows, maps, torch.Generator().manual_seed(hash((seed, number)) % 2**31)).half()

    return Clustered(passages, chunk, _vectors(query_latent, query_maps, random), gold)


def _vectors(latent: Tensor, maps: tuple[Tensor, Tensor, Tensor], random: torch.Generator) -> Tensor:
    shared, own, position = maps
    k, _, d = own.shape
    vectors = POSITION**0.5 * position + SHARED**0.5 * normalize(latent @ shared, dim=-1)[:, None]
    vectors = vectors + OWN**0.5 * normalize(torch.einsum("nr,krd->nkd", latent, own), dim=-1)
    return normalize(vectors + (NOISE / d) ** 0.5 * torch.randn(len(latent), k, d, generator=random), dim=-1)
