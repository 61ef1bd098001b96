"""Gradient caching, for batches beyond memory: a batch is encoded in micro-batches, of which only the vectors are kept.

The backward pass encodes each micro-batch a second time, from the same random state, when it needs the activations; the
gradients are those of the undivided batch (Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup"). Peak memory follows the micro-batch; the price is one more forward pass.
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
    """Encode a batch as `retriever(queries, passages)` does, with the activations of few queries in memory at a time.

    Args:
        retriever: in training mode, say.
        queries: B rows.
        passages: P rows; they are divided into as many micro-batches as the queries.
        micro_batch: most queries in a micro-batch; None: one of all, whose activations are kept.
        query_means: if given, collects the gate activations of the queries.
        passage_means: if given, collects those of the passages.

    Returns:
        (B, k, d) and (P, k, d) vectors of length 1.
    """
    if micro_batch is None:
        return retriever(queries, passages, query_means, passage_means)
    count = max(1, math.ceil(len(queries) / micro_batch))
    parts = zip(_divided(queries, count), _divided(passages, count), strict=True)
    vectors = [_encode(retriever, query, passage, (query_means, passage_means)) for query, passage in parts]
    query_vectors, passage_vectors = zip(*vectors, strict=True)
    return torch.cat(query_vectors), torch.cat(passage_vectors)


def _encode(
    retriever: RetRetriever,
    queries: EncoderInput,
    passages: EncoderInput,
    means: tuple[ActivationMeans | None, ActivationMeans | None],
) -> tuple[Tensor, Tensor]:
    first_time = [means]  # the second encoding, in the backward pass, must not count the activations again

    def encode(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        collect = first_time.pop() if first_time else (None, None)
        return retriever(EncoderInput(*tensors[:_FIELDS]), EncoderInput(*tensors[_FIELDS:]), *collect)

    # Tensors one by one, not the inputs as they are: by them `checkpoint` finds out whose random state is to be kept.
    return checkpoint(encode, *_tensors(queries), *_tensors(passages), use_reentrant=False)


def _tensors(inputs: EncoderInput) -> list[Tensor]:
    return [getattr(inputs, field.name) for field in fields(inputs)]


def _divided(inputs: EncoderInput, count: int) -> list[EncoderInput]:
    """Split rows into `count` parts of about equal length, some of them perhaps empty."""
    bounds = [len(inputs) * part // count for part in range(count + 1)]
    return [inputs.slice(start, stop) for start, stop in pairwise(bounds)]
