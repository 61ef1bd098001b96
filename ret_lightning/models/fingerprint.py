"""A fingerprint of a model, by which what was encoded with it is told from what another one encoded."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from ret_lightning.errors import ConfigError
from ret_lightning.models.published_names import published_state
from ret_lightning.models.published_writing import architecture
from ret_lightning.models.retriever import RetRetriever

PREPARATION = (("tokenizer", ("max_length",)), ("image_transform", ("size", "mean", "std")))


def fingerprint(retriever: RetRetriever) -> str:
    """32 hexadecimal digits that change with any weight, with the architecture, and with how texts and images are prepared.

    A training checkpoint and what ret-export makes of it have the same one.
    """
    digest = hashlib.blake2b(digest_size=16)
    settings: dict[str, Any] = {
        f"{side}.{part}.{name}": getattr(getattr(tower, part), name, None)
        for side, tower in (("query", retriever.query_tower), ("passage", retriever.passage_tower))
        for part, names in PREPARATION
        for name in names
    }
    try:
        settings |= architecture(retriever)
        weights = published_state(retriever)
    except ConfigError:  # a backbone that the published layout has no place for
        weights = retriever.state_dict()
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
