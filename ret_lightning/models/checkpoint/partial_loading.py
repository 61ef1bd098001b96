"""Partial loading: copy the weights that fit from a retriever of another architecture, and list the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from ret_lightning.models.checkpoint.state_names import published_sides, published_state
from ret_lightning.models.two_towers import TwoTowers

# Set by the config and not learned, so a checkpoint does not override them.
_SETTINGS = ("query_state_ids", "input_gate_bias_prior", "forget_gate_bias_prior")
_ADAPTERS = {"text_adapter": "text", "vision_adapter": "vision"}  # published name to the side of a layer plan
_BACKBONES = ("text_model", "vision_model")
_START = "query_hidden_states"  # a parameter without a module


@dataclass(frozen=True)
class PartialLoad:
    """The result of partial loading, with names of the published layout. A module stands for all its tensors if all are listed.

    Attributes:
        loaded: Number of loaded tensors.
        initialised: Tensors of the model that keep their values, because the checkpoint has none or one of another shape.
        unused: Tensors of the checkpoint that the model does not have.
    """

    loaded: int
    initialised: tuple[str, ...]
    unused: tuple[str, ...]


def load_fitting_weights(retriever: TwoTowers, source: TwoTowers) -> PartialLoad:
    """Copy the weights of the same name and shape from another retriever. Adapters must also read the same block.

    A layer or a backbone is loaded completely or not at all.

    Args:
        retriever: Target, modified in place. Its settings, dtypes and devices are unchanged.
        source: Source of the weights, not modified.

    Returns:
        The number of loaded tensors and the names of the others.
    """
    own, state = published_state(retriever), published_state(source)
    names = {
        name: name if name in state else name.replace("passage_model.", "query_model.", 1)
        for name in own
        if not _is_setting(name)
    }
    missing: dict[str, str] = {}  # name to how it is listed
    for name, there in names.items():
        if there not in state or not _same_block(name, retriever, source):
            missing[name] = name
        elif state[there].shape != own[name].shape:
            missing[name] = f"{name} {tuple(own[name].shape)}, in the checkpoint {tuple(state[there].shape)}"
    incomplete = {_layer(name) for name in missing}
    missing |= {name: name for name in names if _layer(name) in incomplete and name not in missing}
    loaded: set[int] = set()  # a tensor that both towers share is loaded once
    used: set[str] = set()
    for name, there in names.items():
        if name not in missing and own[name].data_ptr() not in loaded:
            with torch.no_grad():
                own[name].copy_(state[there])
            loaded.add(own[name].data_ptr())
            used.add(there)
    for side, tower in published_sides(retriever).items():
        other = published_sides(source).get(side, source.query_tower)
        for field, stack, theirs in (
            ("text_model", tower.text_backbone, other.text_backbone),
            ("vision_model", tower.vision_backbone, other.vision_backbone),
        ):
            if not any(name.startswith(f"{side}.{field}.") for name in missing):
                stack.source = theirs.source
    unused = {name: name for name in state if name not in used and not _is_setting(name)}
    return PartialLoad(len(loaded), _listed(missing, own), _listed(unused, state))


def _is_setting(name: str) -> bool:
    return name.rpartition(".")[2] in _SETTINGS


def _layer(name: str) -> str:
    side, field, *_ = name.split(".")
    return f"{side}.{field}" if field in _BACKBONES else name if name.endswith(_START) else name.rpartition(".")[0]


def _same_block(name: str, retriever: TwoTowers, source: TwoTowers) -> bool:
    """Return whether an adapter reads the same block of the backbone in both models; True for all other tensors."""
    side, field, step = name.split(".")[:3]
    if field not in _ADAPTERS:
        return True
    plans = [
        getattr(published_sides(each).get(side, each.query_tower).plan, _ADAPTERS[field])
        for each in (retriever, source)
    ]
    return plans[0][int(step)] == plans[1][int(step)]


def _listed(names: Mapping[str, str], every: Collection[str]) -> tuple[str, ...]:
    """Return the texts of the names, with the name of a module in place of its tensors if all of them are listed."""
    others = {prefix for name in every if name not in names and not _is_setting(name) for prefix in _prefixes(name)}
    modules: dict[str, list[str]] = defaultdict(list)
    for name, text in names.items():
        modules[next((prefix for prefix in _prefixes(name) if prefix not in others), name)].append(text)
    return tuple(texts[0] if len(texts) == 1 else module for module, texts in modules.items())


def _prefixes(name: str) -> list[str]:
    """Return the enclosing modules of a tensor, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
