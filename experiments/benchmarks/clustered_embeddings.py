"""Embeddings made to be clustered as a retriever's are, of any number, for measuring indexes without a trained model.

Each item has a meaning, a point in a space of RANK dimensions:

- topics: one for 50 passages on average, of very uneven sizes (Zipf), themselves gathered around one hub in eight topics;
- within a topic, passages spread with a covariance whose spectrum falls as 1 / sqrt(i);
- one passage in twenty is a near-duplicate of another one (an edited copy): its meaning is moved by a tenth of the spread.

From the meaning, vector t of k is made by a map shared by all t plus a map of its own, so that the vectors of an item are
related but see different sides of it. To this comes a direction of the vector's place t, shared by all items (the learned
query tokens of ReT give each place one), and noise of full rank, drawn anew for each vector. All vectors are normalised.

A query has a gold passage: it starts from the passage's meaning, moved by QUERY_SPREAD times the spread within a topic, and
goes through maps that differ a little from the passages', as two towers' do.
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
# Shares of a vector's squared length: direction of its place, meaning (through the shared and the own map), noise.
PLACE, SHARED, OWN, NOISE = 0.25, 0.25, 0.25, 0.25
CHUNK = 2048  # passages that are made at a time, each chunk from a seed of its own


@dataclass(frozen=True, eq=False)
class Clustered:
    """`chunk(i)` makes passages i * CHUNK and on; queries (Nq, k, d) float32; gold (Nq,) int64, the passage of each."""

    count: int
    chunk: Callable[[int], Tensor]
    queries: Tensor
    gold: Tensor


def clustered(passages: int, queries: int, k: int = 32, d: int = 128, seed: int = 0) -> Clustered:
    """Passages and queries as the module says; the same for the same arguments.

    Args:
        passages: N. queries: Nq, whose gold passages differ.
        k: vectors an item. d: their width.

    Returns:
        `chunk` gives (CHUNK, k, d) float16, the last one fewer rows.
    """
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    topics = max(2, passages // PASSAGES_A_TOPIC)
    hubs = draw(max(1, topics // 8), RANK)
    centers = hubs[torch.randint(len(hubs), (topics,), generator=random)] + 0.7 * draw(topics, RANK)
    spectrum = torch.arange(1, RANK + 1).pow(-0.5)
    spectrum *= (RANK / spectrum.square().sum()).sqrt()
    turn = torch.linalg.qr(draw(RANK, RANK)).Q  # the same axes of spread in all topics, but not the coordinates'
    sizes = 1 / torch.arange(1, topics + 1).pow(0.5)
    topic = torch.multinomial(sizes, passages, replacement=True, generator=random)
    meaning = centers[topic] + 0.8 * (draw(passages, RANK) * spectrum) @ turn
    copies = (torch.rand(passages, generator=random) < DUPLICATES).nonzero()[:, 0]
    of = torch.randint(passages, (len(copies),), generator=random)
    meaning[copies] = meaning[of] + 0.08 * (draw(len(copies), RANK) * spectrum) @ turn
    maps = draw(RANK, d), draw(k, RANK, d), normalize(draw(k, d), dim=-1)
    other = tuple(0.95 * part + 0.3 * part.std() * draw(*part.shape) for part in maps)
    gold = torch.randperm(passages, generator=random)[:queries]
    asked = meaning[gold] + QUERY_SPREAD * 0.8 * (draw(len(gold), RANK) * spectrum) @ turn

    def chunk(number: int) -> Tensor:
        rows = meaning[number * CHUNK : (number + 1) * CHUNK]
        return _vectors(rows, maps, torch.Generator().manual_seed(hash((seed, number)) % 2**31)).half()

    return Clustered(passages, chunk, _vectors(asked, other, random), gold)


def _vectors(meaning: Tensor, maps: tuple[Tensor, Tensor, Tensor], random: torch.Generator) -> Tensor:
    shared, own, place = maps
    k, _, d = own.shape
    vectors = PLACE**0.5 * place + SHARED**0.5 * normalize(meaning @ shared, dim=-1)[:, None]
    vectors = vectors + OWN**0.5 * normalize(torch.einsum("nr,krd->nkd", meaning, own), dim=-1)
    return normalize(vectors + (NOISE / d) ** 0.5 * torch.randn(len(meaning), k, d, generator=random), dim=-1)
