"""Gradient caching: encode a large batch in micro-batches and keep only the output vectors.

The backward pass encodes each micro-batch again from the same random state to recompute its activations. The gradients are
those of the whole batch (Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
arXiv 2101.06983). Peak memory depends on the size of a micro-batch, at the cost of one additional forward pass.

Shape legend: B queries, P passages, k vectors of width d each.
"""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ret_lightning.inputs import EncoderInput
from ret_lightning.models.gate_activations import ActivationMeans
from ret_lightning.models.retriever import RetRetriever

_FIELDS = len(fields(EncoderInput))


def encode_in_micro_batches(
    retriever: RetRetriever,
    queries: EncoderInput,
    passages: EncoderInput,
    micro_batch: int | None,
    query_means: ActivationMeans | None = None,
    passage_means: ActivationMeans | None = None,
) -> tuple[Tensor, Tensor]:
    """Encode a batch like `retriever(queries, passages)`, with the activations of one micro-batch in memory at a time.

    Args:
        retriever: The retriever to train.
        queries: B rows.
        passages: P rows, divided into as many micro-batches as the queries.
        micro_batch: Maximum number of queries per micro-batch; None encodes the whole batch and keeps its activations.
        query_means: Collects the gate activations of the queries, if given.
        passage_means: Collects the gate activations of the passages, if given.

    Returns:
        L2-normalised query vectors (B, k, d) and passage vectors (P, k, d).
    """
    if micro_batch is None:
        return retriever(queries, passages, query_means, passage_means)
    count = max(1, math.ceil(len(queries) / micro_batch))
    parts = zip(_split(queries, count), _split(passages, count), strict=True)
    vectors = [_encode(retriever, query, passage, (query_means, passage_means)) for query, passage in parts]
    query_vectors, passage_vectors = zip(*vectors, strict=True)
    return torch.cat(query_vectors), torch.cat(passage_vectors)


def _encode(
    retriever: RetRetriever,
    queries: EncoderInput,
    passages: EncoderInput,
    means: tuple[ActivationMeans | None, ActivationMeans | None],
) -> tuple[Tensor, Tensor]:
    first_time = [means]  # the recomputation in the backward pass must not count the activations again

    def encode(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        collect = first_time.pop() if first_time else (None, None)
        return retriever(EncoderInput(*tensors[:_FIELDS]), EncoderInput(*tensors[_FIELDS:]), *collect)

    # Individual tensors, from which `checkpoint` infers the devices whose random state it must preserve.
    return checkpoint(encode, *_tensors(queries), *_tensors(passages), use_reentrant=False)


def _tensors(inputs: EncoderInput) -> list[Tensor]:
    return [getattr(inputs, field.name) for field in fields(inputs)]


def _split(inputs: EncoderInput, count: int) -> list[EncoderInput]:
    """Split rows into `count` parts of about equal length, some of which may be empty."""
    bounds = [len(inputs) * part // count for part in range(count + 1)]
    return [inputs.slice(start, stop) for start, stop in pairwise(bounds)]
