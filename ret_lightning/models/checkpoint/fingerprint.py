"""A fingerprint of a model, which tells its vectors from those of any other model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch

from ret_lightning.errors import ConfigError
from ret_lightning.models.checkpoint.config_writer import architecture, former_architecture
from ret_lightning.models.checkpoint.preprocessors import PUBLISHED, fingerprint_settings
from ret_lightning.models.checkpoint.state_names import published_state
from ret_lightning.models.exchangeable_parts import class_name, described_value
from ret_lightning.models.tower import RetTower
from ret_lightning.models.two_towers import TwoTowers

VERSION = 3
# What the second version depends on, of the settings of tokenizers and image transforms.
_IMAGE_SETTINGS = ("size", "mean", "std", "reduce")
_KNOWN = {"tokenizer": ("max_length",), "image_transform": _IMAGE_SETTINGS}


def fingerprint(retriever: TwoTowers) -> str:
    """A version and 32 hexadecimal digits that change with any weight, setting of a part, tokenizer and image transform.

    A training checkpoint and what ret-export writes of it have the same fingerprint. The version is `v2:`, or `v3:` where the
    tokenizer or image transform has settings or files that CLIP's lack.
    """
    further = _of_both_sides(retriever, _further_preparation)
    return _fingerprint(retriever, further, VERSION if further else 2)


def fingerprint_as(stored: str, retriever: TwoTowers) -> str:
    """The fingerprint of a retriever in the version of a stored one, so that the two can be compared.

    Args:
        stored: of an index or of embeddings, of this version or an earlier one. Fingerprints of the first version have no
            prefix, and do not depend on the settings that only a gate of the user's own has; those of the second not on the
            further settings and the files of a tokenizer or image transform.
        retriever: the model.
    """
    if ":" not in stored:
        return _first_fingerprint(retriever)
    return _fingerprint(retriever, {}, 2) if stored.startswith("v2:") else fingerprint(retriever)


def _fingerprint(retriever: TwoTowers, further: dict[str, Any], version: int) -> str:
    names = _own_classes if version == 2 else _own_names
    preparation = _of_both_sides(retriever, lambda tower: _preparation(tower, _IMAGE_SETTINGS) | names(tower))
    return f"v{version}:" + _digest(preparation | further | architecture(retriever), _weights(retriever))


def _of_both_sides(retriever: TwoTowers, settings: Callable[[RetTower], dict[str, Any]]) -> dict[str, Any]:
    sides = (("query", retriever.query_tower), ("passage", retriever.passage_tower))
    return {f"{side}.{name}": value for side, tower in sides for name, value in settings(tower).items()}


def _first_fingerprint(retriever: TwoTowers) -> str:
    settings = _of_both_sides(retriever, lambda tower: _preparation(tower, ("size", "mean", "std")))
    try:
        settings |= former_architecture(retriever)
        weights = published_state(retriever)
    except ConfigError:
        weights = retriever.state_dict()
    return _digest(settings, weights)


def _preparation(tower: RetTower, image_settings: tuple[str, ...]) -> dict[str, Any]:
    images = {f"image_transform.{name}": getattr(tower.image_transform, name, None) for name in image_settings}
    return {"tokenizer.max_length": getattr(tower.tokenizer, "max_length", None), **images}


def _own_classes(tower: RetTower) -> dict[str, str]:
    """The classes of a tokenizer and an image transform that are not CLIP's, by their dotted names."""
    parts = {name: getattr(tower, name) for name in PUBLISHED}
    return {name: class_name(part) for name, part in parts.items() if type(part) is not PUBLISHED[name]}


def _own_names(tower: RetTower) -> dict[str, str]:
    """As `_own_classes`, by the names that checkpoints store, which stay where a class is moved."""
    return {name: getattr(getattr(tower, name), "name", found) for name, found in _own_classes(tower).items()}


def _further_preparation(tower: RetTower) -> dict[str, Any]:
    """What the second version does not depend on."""
    return {
        f"{name}.{key}": described_value(value)
        for name, known in _KNOWN.items()
        for key, value in fingerprint_settings(getattr(tower, name), known).items()
    }


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
