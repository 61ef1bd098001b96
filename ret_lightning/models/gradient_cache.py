"""Batches beyond memory: a batch is encoded piece by piece, and only the vectors outlive a piece.

The backward pass encodes each piece a second time, from the same random state, when it needs the activations; the gradients
are those of the undivided batch (gradient caching: Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under
Memory Limited Setup"). Peak memory follows the piece; the price is one more forward pass.
"""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ret_lightning.inputs import EncoderInput
from ret_lightning.models.gate_activations import OpeningMeans
from ret_lightning.models.retriever import RetRetriever

_FIELDS = len(fields(EncoderInput))


def encode_in_pieces(
    retriever: RetRetriever,
    queries: EncoderInput,
    passages: EncoderInput,
    size: int | None,
    query_means: OpeningMeans | None = None,
    passage_means: OpeningMeans | None = None,
) -> tuple[Tensor, Tensor]:
    """What `retriever(queries, passages)` gives, with the activations of at most `size` queries in memory at a time.

    Args:
        retriever: in training mode, say.
        queries: B_q rows.
        passages: B_p rows; they are divided into as many pieces as the queries.
        size: most queries a piece; None: one piece, whose activations are kept.
        query_means: if given, collects the gate openings.
        passage_means: likewise.
    """
    if size is None:
        return retriever(queries, passages, query_means, passage_means)
    count = max(1, math.ceil(len(queries) / size))
    pieces = zip(_divided(queries, count), _divided(passages, count), strict=True)
    vectors = [_encode(retriever, query, passage, (query_means, passage_means)) for query, passage in pieces]
    query_vectors, passage_vectors = zip(*vectors, strict=True)
    return torch.cat(query_vectors), torch.cat(passage_vectors)


def _encode(
    retriever: RetRetriever,
    queries: EncoderInput,
    passages: EncoderInput,
    means: tuple[OpeningMeans | None, OpeningMeans | None],
) -> tuple[Tensor, Tensor]:
    first_time = [means]  # the second encoding, in the backward pass, must not count the openings again

    def encode(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        collect = first_time.pop() if first_time else (None, None)
        return retriever(EncoderInput(*tensors[:_FIELDS]), EncoderInput(*tensors[_FIELDS:]), *collect)

    # Tensors one by one, not the inputs as they are: by them `checkpoint` finds out whose random state is to be kept.
    return checkpoint(encode, *_tensors(queries), *_tensors(passages), use_reentrant=False)


def _tensors(inputs: EncoderInput) -> list[Tensor]:
    return [getattr(inputs, field.name) for field in fields(inputs)]


def _divided(inputs: EncoderInput, count: int) -> list[EncoderInput]:
    """The rows in `count` stretches of about equal length, some of them perhaps empty."""
    bounds = [len(inputs) * piece // count for piece in range(count + 1)]
    return [inputs.stretch(start, stop) for start, stop in pairwise(bounds)]
