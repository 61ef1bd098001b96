"""From a retriever to a checkpoint's `config.json`; see config_fields.py for the extension."""

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

# The settings of a backbone, beside its weights, that decide what it computes.
_BACKBONE_SETTINGS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "patch_size", "image_size",
)  # fmt: skip

_CELL_SETTINGS = ("num_heads", "intermediate_size", "activation", "dropout", "attention_dropout")


def config_of(retriever: TwoTowers) -> dict[str, Any]:
    """The content of the `config.json` of a retriever; for one that was read and not changed, what was read.

    Raises:
        ConfigError: if a part cannot be stored.
    """
    query, passage = retriever.query_tower, retriever.passage_tower
    stored = copy.deepcopy(retriever.stored_config)
    config: dict[str, Any] = {
        "architectures": ["RetrieverModel"],
        "fg_loss": not query.pooled,
        "model_type": "retriever",
        "simmetric_loss": True,
        "transformers_version": "4.45.0",  # whose layout this is
        **stored,
        "torch_dtype": str(query.start.dtype).removeprefix("torch."),
    }
    config |= _flags(stored, share_query_passage_models=passage is query)
    query_stored, passage_stored = (stored.get(side) or {} for side in ("query_config", "passage_config"))
    config["query_config"] = _tower_config(query, query_stored)
    if passage is query:
        # Of one tower the published classes read the query's config alone.
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
    """What makes two retrievers the same function of their weights, by the names of the config groups' options.

    Values are JSON. Where the passage tower differs from the query tower, its value is under `passage.`.
    """
    return _of_both_towers(retriever, _described)


def former_architecture(retriever: TwoTowers) -> dict[str, Any]:
    """What the first version of the fingerprints depended on: without settings that only parts of the user's own have.

    Raises:
        ConfigError: if a part cannot be stored.
    """
    return _of_both_towers(retriever, _formerly_described)


def own_modules(retriever: TwoTowers) -> list[str]:
    """The modules of a retriever's gates, backbones, tokenizers and image transforms that are not of this package."""
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
    """Whether the published classes can read what is saved of it."""
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
    """The settings that decide what a stack computes; of a class of the user's own that is all of them."""
    own = is_own(stack)
    described = {"class": class_name(stack)} if own and not _has_own_name(stack) else {}
    if type(stack).layout_config is BlockStack.layout_config:
        return described
    settings = stack.layout_config()
    return described | {
        key: described_value(value) for key, value in settings.items() if own or key in _BACKBONE_SETTINGS
    }


def _has_own_name(stack: BlockStack) -> bool:
    """Whether a checkpoint can name the class of a stack, not one that it inherits from."""
    return bool(type(stack).__dict__.get("model_type"))


def _tower_config(
    tower: RetTower, stored: Mapping[str, Any], has_querys_text: bool = False, has_querys_vision: bool = False
) -> dict[str, Any]:
    """The section of a tower; of a backbone that is the query tower's, the flag in the query's section counts."""
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
    if size or config.get("late_proj_output_size", size) is not None:  # null is read as 0, and written again as null
        config["late_proj_output_size"] = size
    extension, strategy = _extension(tower)
    config["layer_strategy"] = strategy
    config.pop(EXTENSION, None)
    return config | ({EXTENSION: extension} if extension else {})


def _extension(tower: RetTower) -> tuple[dict[str, Any], str]:
    """Our section of a tower, and its layer strategy: none of the published ones where they could not serve the tower."""
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
    """Raises ConfigError if a part of a tower is of a class that a checkpoint cannot name."""
    for option, part, kind in (
        *(("the cell", cell, RetCell) for cell in tower.cells),
        ("the tower", tower, RetTower),
    ):
        if type(part) is not kind:
            raise ConfigError(
                f"{option} is a {class_name(part)}, which a checkpoint of the published layout cannot store: it would be read "
                f"as a {kind.__name__}; use {kind.__name__}, or keep the training checkpoint",
                code="part-not-storable",
                key=option,
                found=class_name(part),
                allowed=kind.__name__,
            )
    for name, stack in (("text", tower.text_backbone), ("vision", tower.vision_backbone)):
        if is_own(stack) and type(stack).layout_config is not BlockStack.layout_config and not _has_own_name(stack):
            raise ConfigError(
                f"backbone.{name} is a {class_name(stack)}, which has no model_type of its own, so a checkpoint would be read "
                "as the class that it inherits from; set model_type in the class",
                code="backbone-without-name",
                key=f"backbone.{name}",
                found=class_name(stack),
            )
    settings = [
        {name: getattr(cell, name) for name in _CELL_SETTINGS} | _described_gate(cell.gate) for cell in tower.cells
    ]
    if any(each != settings[0] for each in settings):
        raise ConfigError(
            "the cells or gates of the steps have different settings, and a checkpoint stores those of one for all steps",
            code="cells-of-steps-differ",
            found=settings,
        )


def _gate_settings(gate: Gate) -> dict[str, Any]:
    if gate.settings is None:
        raise ConfigError(
            f"{class_name(gate)} cannot be stored in a checkpoint: the arguments of its constructor have no names; "
            "replace *args by named arguments",
            code="gate-settings-unknown",
            gate=class_name(gate),
        )
    for name, value in gate.settings.items():
        try:
            json_value(value)
        except TypeError as error:
            raise ConfigError(
                f"gate.{name}={value!r} of {class_name(gate)} cannot be stored in a checkpoint ({error}); use numbers, "
                "texts, lists, and mappings whose keys are texts",
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
    """Flags as they were stored, where that means the same: null counts as false."""
    return {
        name: stored[name] if name in stored and bool(stored[name]) == value else value
        for name, value in values.items()
    }


def _output_size(tower: RetTower) -> int:
    return tower.output.out_features if isinstance(tower.output, nn.Linear) else 0


def _gate_name(gate: Gate) -> str:
    if not gate.name:
        raise ConfigError(
            f"{type(gate).__name__} cannot be stored in a checkpoint: give the class a `name`, see models/gates.py",
            code="gate-without-name",
            gate=type(gate).__name__,
        )
    return gate.name
