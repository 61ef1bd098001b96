"""Describe a retriever as a checkpoint's `config.json`. `config_fields` documents the fields."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ret_lightning.errors import ConfigError
from ret_lightning.inputs import ClipTokenizer, ImageTransform, Preprocessor
from ret_lightning.models.backbones.base import BlockStack
from ret_lightning.models.cell import RetCell
from ret_lightning.models.checkpoint.config_fields import CLIP_IMAGES, EXTENSION, text_positions, vision_size
from ret_lightning.models.checkpoint.preprocessors import KINDS, stored_of
from ret_lightning.models.exchangeable_parts import class_name, described_value, is_own, json_value
from ret_lightning.models.gates import Gate, LSTMGate
from ret_lightning.models.layer_plans import PUBLISHED_PLANS
from ret_lightning.models.tower import RetTower
from ret_lightning.models.two_towers import TwoTowers

# The settings that, together with its weights, determine the function of a backbone.
_BACKBONE_SETTINGS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "patch_size", "image_size",
)  # fmt: skip

_CELL_SETTINGS = ("num_heads", "intermediate_size", "activation", "dropout", "attention_dropout")


def config_of(retriever: TwoTowers) -> dict[str, Any]:
    """Return the content of a retriever's `config.json`. For an unchanged loaded retriever, it equals the loaded config.

    Raises:
        ConfigError: If a part cannot be stored.
    """
    query, passage = retriever.query_tower, retriever.passage_tower
    stored = copy.deepcopy(retriever.stored_config)
    config: dict[str, Any] = {
        "architectures": ["RetrieverModel"],
        "fg_loss": not query.pooled,
        "model_type": "retriever",
        "simmetric_loss": True,
        "transformers_version": "4.45.0",  # the version that defines this layout
        **stored,
        "torch_dtype": str(query.start.dtype).removeprefix("torch."),
    }
    config |= _flags(stored, share_query_passage_models=passage is query)
    query_stored, passage_stored = (stored.get(side) or {} for side in ("query_config", "passage_config"))
    config["query_config"] = _tower_config(query, query_stored)
    if passage is query:
        # For a shared tower, the published classes read only the query config.
        config.setdefault("share_text_models", True)
        config.setdefault("share_vision_models", True)
        config["passage_config"] = stored.get("passage_config", config["query_config"])
    else:
        shared = [
            passage.text_backbone is query.text_backbone,
            passage.vision_backbone is query.vision_backbone,
        ]
        config |= _flags(stored, share_text_models=shared[0], share_vision_models=shared[1])
        config["passage_config"] = _tower_config(passage, passage_stored, *shared)
    config.pop(EXTENSION, None)
    if passage is not query and passage.cells[0] is query.cells[0]:
        config[EXTENSION] = {"share_cells": True}
    return config


def architecture(retriever: TwoTowers) -> dict[str, Any]:
    """Return the settings that determine the function of a retriever, apart from its weights.

    Keys are the names of the options in the config groups, values are JSON types. Settings of the passage tower that differ
    from those of the query tower have the prefix `passage.`.
    """
    return _of_both_towers(retriever, _described)


def former_architecture(retriever: TwoTowers) -> dict[str, Any]:
    """Return the settings used by the first fingerprint version, without those that only user-defined classes have.

    Raises:
        ConfigError: If a part cannot be stored.
    """
    return _of_both_towers(retriever, _formerly_described)


def own_modules(retriever: TwoTowers) -> list[str]:
    """Return the modules of user-defined gates, backbones, tokenizers and image transforms of a retriever."""
    return sorted({m for tower in (retriever.query_tower, retriever.passage_tower) for m in _own_modules(tower)})


def _own_modules(tower: RetTower) -> list[str]:
    preprocessors = [getattr(tower, kind) for kind in KINDS if isinstance(getattr(tower, kind), Preprocessor)]
    parts = (tower.cells[0].gate, tower.text_backbone, tower.vision_backbone, *preprocessors)
    return sorted({type(part).__module__ for part in parts if is_own(part)} - {"__main__"})


def _of_both_towers(retriever: TwoTowers, describe: Callable[[RetTower], dict[str, Any]]) -> dict[str, Any]:
    query, passage = retriever.query_tower, retriever.passage_tower
    described = describe(query) | {"model.share_towers": passage is query}
    other = {f"passage.{key}": value for key, value in describe(passage).items() if value != described.get(key)}
    return described | other


def is_published_architecture(retriever: TwoTowers) -> bool:
    """Return whether the published classes can load the saved retriever."""
    return all(
        _tower_config(tower, {})["layer_strategy"] in PUBLISHED_PLANS
        for tower in (retriever.query_tower, retriever.passage_tower)
    )


def _described(tower: RetTower) -> dict[str, Any]:
    cell: RetCell = tower.cells[0]
    described = _described_gate(cell.gate) | _described_sizes(tower)
    if type(cell) is not RetCell:
        described["model.cell"] = class_name(cell)
    for number, other in enumerate(tower.cells[1:], start=1):
        if _described_gate(other.gate) != _described_gate(cell.gate):
            described[f"gate.of_step_{number}"] = _described_gate(other.gate)
    for name, stack in (("text", tower.text_backbone), ("vision", tower.vision_backbone)):
        described |= {f"backbone.{name}.{key}": value for key, value in _described_stack(stack).items()}
    return described


def _formerly_described(tower: RetTower) -> dict[str, Any]:
    gate = tower.cells[0].gate
    described = {"gate": _gate_name(gate), **{f"gate.{name}": value for name, value in gate.priors.items()}}
    described |= _described_sizes(tower)
    for name, stack in (("text", tower.text_backbone), ("vision", tower.vision_backbone)):
        settings = stack.layout_config()
        described |= {f"backbone.{name}.{key}": settings[key] for key in _BACKBONE_SETTINGS if key in settings}
    return described


def _described_sizes(tower: RetTower) -> dict[str, Any]:
    cell: RetCell = tower.cells[0]
    return {
        "recurrence.text": list(tower.plan.text),
        "recurrence.vision": list(tower.plan.vision),
        "model.num_tokens": cell.num_tokens,
        "model.hidden_size": cell.hidden_size,
        "model.num_heads": cell.num_heads,
        "model.intermediate_size": cell.intermediate_size,
        "model.activation": cell.activation,
        "model.output_size": _output_size(tower),
        "model.pooled": tower.pooled,
        "model.cell_per_step": len(tower.cells) > 1,
    }


def _described_gate(gate: Gate) -> dict[str, Any]:
    settings = {f"gate.{name}": described_value(value) for name, value in (gate.settings or {}).items()}
    return {"gate": gate.name or class_name(gate), **settings}


def _described_stack(stack: BlockStack) -> dict[str, Any]:
    """Return the settings that determine the function of a stack; for a user-defined class, all settings."""
    own = is_own(stack)
    described = {"class": class_name(stack)} if own and not _has_own_name(stack) else {}
    if type(stack).layout_config is BlockStack.layout_config:
        return described
    settings = stack.layout_config()
    return described | {
        key: described_value(value) for key, value in settings.items() if own or key in _BACKBONE_SETTINGS
    }


def _has_own_name(stack: BlockStack) -> bool:
    """Return whether the class of a stack defines its own `model_type`, instead of inheriting one."""
    return bool(type(stack).__dict__.get("model_type"))


def _tower_config(
    tower: RetTower, stored: Mapping[str, Any], has_querys_text: bool = False, has_querys_vision: bool = False
) -> dict[str, Any]:
    """Return the section of a tower. For a backbone shared with the query tower, the stored frozen flag is preserved."""
    _check_storable(tower)
    cell: RetCell = tower.cells[0]
    gate, text, vision = cell.gate, tower.text_backbone, tower.vision_backbone
    frozen = {"is_text_frozen": not text.trained, "is_vision_frozen": not vision.trained}
    kept = {"is_text_frozen": has_querys_text, "is_vision_frozen": has_querys_vision}
    config = {
        "model_type": "ret",
        **stored,
        "hidden_size": cell.hidden_size,
        "num_attention_heads": cell.num_heads,
        "intermediate_size": cell.intermediate_size,
        "num_queries": cell.num_tokens,
        "dropout_p": cell.dropout,
        "attention_dropout": cell.attention_dropout,
        "activation_fn": cell.activation,
        "input_gate_bias_prior": gate.priors["input_bias"],
        "forget_gate_bias_prior": gate.priors["forget_bias"],
        "text_config": _stack_config(text, stored.get("text_config") or {}),
        "vision_config": _stack_config(vision, stored.get("vision_config") or {}),
        **_flags(stored, use_tanh=gate.priors["tanh"], use_pooler_features=tower.pooled),
        **{name: stored[name] if kept[name] and name in stored else value for name, value in frozen.items()},
    }
    size = _output_size(tower)
    if size or config.get("late_proj_output_size", size) is not None:  # preserve null, which means 0
        config["late_proj_output_size"] = size
    extension, strategy = _extension(tower)
    config["layer_strategy"] = strategy
    config.pop(EXTENSION, None)
    return config | ({EXTENSION: extension} if extension else {})


def _extension(tower: RetTower) -> tuple[dict[str, Any], str]:
    """Return the extension section of a tower and its layer strategy, which is unpublished if the extension is needed."""
    cell: RetCell = tower.cells[0]
    layers = {"text": list(tower.plan.text), "vision": list(tower.plan.vision)}
    strategy = next((name for name, plan in PUBLISHED_PLANS.items() if plan == tower.plan), EXTENSION)
    extension: dict[str, Any] = {}
    if type(cell.gate) is not LSTMGate:
        extension["gate"] = _gate_name(cell.gate)
        settings = _gate_settings(cell.gate)
        if settings != cell.gate.priors:
            extension["gate_settings"] = settings
    if own := _own_modules(tower):
        extension["modules"] = own
    extension |= {kind: stored.entry() for kind, stored in stored_of(tower).items()}
    if len(tower.cells) > 1:
        extension["cell_per_step"] = True
    other_sizes = cell.num_heads != cell.hidden_size // 64 or cell.intermediate_size != 4 * cell.hidden_size
    if extension or other_sizes or strategy == EXTENSION:
        extension["layers"], strategy = layers, EXTENSION
    images, tokenizer = tower.image_transform, tower.tokenizer
    if type(images) is ImageTransform:
        if (images.mean, images.std) != (CLIP_IMAGES.mean, CLIP_IMAGES.std):
            extension |= {"image_mean": list(images.mean), "image_std": list(images.std)}
        if images.size != vision_size(tower.vision_backbone):
            extension["image_size"] = images.size
        if images.reduce:
            extension["image_reduce"] = True
    if type(tokenizer) is ClipTokenizer and tokenizer.max_length != text_positions(tower.text_backbone):
        extension["max_length"] = tokenizer.max_length
    return extension, strategy


def _check_storable(tower: RetTower) -> None:
    """Raise ConfigError if a checkpoint cannot store the class of a part of the tower."""
    for option, part, kind in (
        *(("the cell", cell, RetCell) for cell in tower.cells),
        ("the tower", tower, RetTower),
    ):
        if type(part) is not kind:
            raise ConfigError(
                f"{option}: the published layout can only store a {kind.__name__}, got {class_name(part)}; use "
                f"{kind.__name__}, or keep the training checkpoint",
                code="part-not-storable",
                key=option,
                found=class_name(part),
                allowed=kind.__name__,
            )
    for name, stack in (("text", tower.text_backbone), ("vision", tower.vision_backbone)):
        if is_own(stack) and type(stack).layout_config is not BlockStack.layout_config and not _has_own_name(stack):
            raise ConfigError(
                f"backbone.{name}: {class_name(stack)} does not define model_type, so a checkpoint would be loaded as its base "
                "class; set a unique model_type in the class",
                code="backbone-without-name",
                key=f"backbone.{name}",
                found=class_name(stack),
            )
    settings = [
        {name: getattr(cell, name) for name in _CELL_SETTINGS} | _described_gate(cell.gate) for cell in tower.cells
    ]
    if any(each != settings[0] for each in settings):
        names = sorted({name for each in settings for name in each if each.get(name) != settings[0].get(name)})
        raise ConfigError(
            f"the cells of the steps differ in {', '.join(names)}; a checkpoint stores one value for all steps: use the same "
            "settings in all cells",
            code="cells-of-steps-differ",
            key=", ".join(names),
            found=settings,
        )


def _gate_settings(gate: Gate) -> dict[str, Any]:
    if gate.settings is None:
        raise ConfigError(
            f"gate: {class_name(gate)} cannot be stored in a checkpoint, because its constructor takes *args; replace them by "
            "named arguments",
            code="gate-settings-unknown",
            gate=class_name(gate),
        )
    for name, value in gate.settings.items():
        try:
            json_value(value)
        except TypeError as error:
            raise ConfigError(
                f"gate.{name}={value!r} of {class_name(gate)} cannot be stored in a checkpoint ({error}); expected numbers, "
                "strings, lists, or mappings with strings as keys",
                code="gate-setting-not-storable",
                key=f"gate.{name}",
                found=repr(value),
            ) from error
    return {name: json_value(value) for name, value in gate.settings.items()}


def _stack_config(stack: BlockStack, stored: Mapping[str, Any]) -> dict[str, Any]:
    config = stack.layout_config()
    if not stored or (stored.get("_name_or_path") or "") != stack.source:
        config["_name_or_path"] = stack.source
    return {**stored, **config}


def _flags(stored: Mapping[str, Any], **values: bool) -> dict[str, Any]:
    """Return the flags, in their stored form if it is equivalent: null counts as false."""
    return {
        name: stored[name] if name in stored and bool(stored[name]) == value else value
        for name, value in values.items()
    }


def _output_size(tower: RetTower) -> int:
    return tower.output.out_features if isinstance(tower.output, nn.Linear) else 0


def _gate_name(gate: Gate) -> str:
    if not gate.name:
        raise ConfigError(
            f"gate: {type(gate).__name__} has no name and cannot be stored in a checkpoint; set a unique `name` in the class",
            code="gate-without-name",
            gate=type(gate).__name__,
        )
    return gate.name
