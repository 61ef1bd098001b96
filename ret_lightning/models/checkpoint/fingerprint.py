"""A fingerprint of a model, which tells its vectors from those of any other model."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from ret_lightning.errors import ConfigError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from ret_lightning.models.checkpoint.config_writer import architecture, former_architecture
from ret_lightning.models.checkpoint.state_names import published_state
from ret_lightning.models.exchangeable_parts import class_name
from ret_lightning.models.tower import RetTower
from ret_lightning.models.two_towers import TwoTowers

VERSION = 2
_PREFIX = f"v{VERSION}:"


def fingerprint(retriever: TwoTowers) -> str:
    """`v2:` and 32 hexadecimal digits that change with any weight, with any setting of a part, and with the preprocessing.

    A training checkpoint and what ret-export writes of it have the same fingerprint.
    """
    preparation = {
        f"{side}.{name}": value
        for side, tower in (("query", retriever.query_tower), ("passage", retriever.passage_tower))
        for name, value in {**_preparation(tower, ("size", "mean", "std", "reduce")), **_own_preparation(tower)}.items()
    }
    return _PREFIX + _digest(preparation | architecture(retriever), _weights(retriever))


def fingerprint_as(stored: str, retriever: TwoTowers) -> str:
    """The fingerprint of a retriever in the version of a stored one, so that the two can be compared.

    Args:
        stored: of an index or of embeddings, of this version or an earlier one. Fingerprints of the first version have no
            prefix, and do not depend on the settings that only a gate of the user's own has.
        retriever: the model.
    """
    return fingerprint(retriever) if ":" in stored else _first_fingerprint(retriever)


def _first_fingerprint(retriever: TwoTowers) -> str:
    settings: dict[str, Any] = {
        f"{side}.{name}": value
        for side, tower in (("query", retriever.query_tower), ("passage", retriever.passage_tower))
        for name, value in _preparation(tower, ("size", "mean", "std")).items()
    }
    try:
        settings |= former_architecture(retriever)
        weights = published_state(retriever)
    except ConfigError:
        weights = retriever.state_dict()
    return _digest(settings, weights)


def _preparation(tower: RetTower, image_settings: tuple[str, ...]) -> dict[str, Any]:
    images = {f"image_transform.{name}": getattr(tower.image_transform, name, None) for name in image_settings}
    return {"tokenizer.max_length": getattr(tower.tokenizer, "max_length", None), **images}


def _own_preparation(tower: RetTower) -> dict[str, str]:
    """The classes of a tokenizer and an image transform that are not CLIP's."""
    parts = {"tokenizer": (tower.tokenizer, ClipTokenizer), "image_transform": (tower.image_transform, ImageTransform)}
    return {name: class_name(part) for name, (part, kind) in parts.items() if type(part) is not kind}


def _weights(retriever: TwoTowers) -> dict[str, torch.Tensor]:
    try:
        return published_state(retriever)
    except ConfigError:  # a backbone that the published layout has no place for
        return retriever.state_dict()


def _digest(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
