"""Fingerprints of models. Indexes and stored embeddings use them to detect vectors of another model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
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
# The settings of tokenizers and image transforms that the second version covers.
_IMAGE_SETTINGS = ("size", "mean", "std", "reduce")
_KNOWN = {"tokenizer": ("max_length",), "image_transform": _IMAGE_SETTINGS}


def fingerprint(retriever: TwoTowers) -> str:
    """Return the fingerprint of a model: a version and 32 hexadecimal digits.

    It depends on the weights, the architecture, the tokenizers and the image transforms. A training checkpoint and its export
    have the same fingerprint. The version is `v3:` if a tokenizer or image transform has settings or files that those of CLIP
    do not have, otherwise `v2:`.
    """
    further = _of_both_sides(retriever, _further_preparation)
    return _fingerprint(retriever, further, VERSION if further else 2)


def fingerprint_as(stored: str, retriever: TwoTowers) -> str:
    """Return the fingerprint of a retriever in the version of a stored fingerprint, for comparison.

    Args:
        stored: Fingerprint of an index or of embeddings, in any version. The first version has no prefix and does not cover
            settings that only user-defined gates have. The second does not cover the additional settings and files of
            tokenizers and image transforms.
        retriever: The model.

    Returns:
        The fingerprint, equal to `stored` if the model is the same.
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
    """Return the dotted class names of a tokenizer and image transform that are not those of CLIP."""
    parts = {name: getattr(tower, name) for name in PUBLISHED}
    return {name: class_name(part) for name, part in parts.items() if type(part) is not PUBLISHED[name]}


def _own_names(tower: RetTower) -> dict[str, str]:
    """Return the names, as stored in checkpoints, of a tokenizer and image transform that are not those of CLIP."""
    return {name: getattr(getattr(tower, name), "name", found) for name, found in _own_classes(tower).items()}


def _further_preparation(tower: RetTower) -> dict[str, Any]:
    """Return the settings and files of tokenizer and image transform that the second version does not cover."""
    return {
        f"{name}.{key}": described_value(value)
        for name, known in _KNOWN.items()
        for key, value in fingerprint_settings(getattr(tower, name), known).items()
    }


def _weights(retriever: TwoTowers) -> dict[str, torch.Tensor]:
    try:
        return published_state(retriever)
    except ConfigError:  # a backbone that the published layout cannot store
        return retriever.state_dict()


def _digest(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    update_with_weights(digest, weights)
    return digest.hexdigest()


def update_with_weights(digest: hashlib.blake2b, weights: Mapping[str, torch.Tensor]) -> None:
    """Update a digest with the name, shape, dtype and bytes of each tensor, in the order of the names."""
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
