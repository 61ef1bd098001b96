"""The fields of a checkpoint's `config.json`, checked as they are read, and our extension of them.

What the published classes cannot express stands in a section `ret_lightning` of a tower's config, or of the whole one:

| where | field | what |
|---|---|---|
| tower | `gate` | name of the gate, where it is not the published one |
| tower | `gate_settings` | arguments of its constructor, where they are not the three that the published fields hold |
| tower | `modules` | modules of the classes that are not of this package |
| tower | `tokenizer`, `image_transform` | `{"name": ..., "settings": {...}, "files": [...]}`, where it is not CLIP's |
| tower | `layers` | `{"text": [...], "vision": [...]}`, where that is no published plan |
| tower | `cell_per_step` | true: a cell for each step |
| tower | `image_mean`, `image_std` | where they are not CLIP's |
| tower | `image_size` | where it is not that of the vision backbone |
| tower | `image_reduce` | true: large JPEGs are decoded at a reduced size |
| tower | `max_length` | of a text in tokens, where it is not all that the text backbone has positions for |
| whole | `share_cells` | true: both towers have the same cell (stored twice, as the published classes want it) |

A model with any of the first seven has a `layer_strategy` that the published classes refuse, lest they compute something
else with it; so has one with heads or an MLP of other sizes than theirs, H // 64 and 4 H.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ret_lightning.errors import UserError
from ret_lightning.inputs import ImageTransform
from ret_lightning.models.backbones.base import BlockStack

EXTENSION = "ret_lightning"
TOWER_EXTENSION = (
    "gate", "gate_settings", "modules", "tokenizer", "image_transform", "layers", "cell_per_step", "image_mean", "image_std",
    "image_size", "image_reduce", "max_length",
)  # fmt: skip
WHOLE_EXTENSION = ("share_cells",)

# How CLIP prepares images and how long its texts may be: what a checkpoint that says nothing else was trained with.
CLIP_IMAGES, CLIP_POSITIONS = ImageTransform(), 77

# What the published classes take where a config is silent.
TOWER_DEFAULTS: dict[str, Any] = {
    "is_text_frozen": True,
    "is_vision_frozen": True,
    "late_proj_output_size": 128,
    "layer_strategy": "clip_vit_b",
    "use_pooler_features": False,
    "num_queries": 32,
    "hidden_size": 1024,
    "dropout_p": 0.05,
    "attention_dropout": 0.05,
    "activation_fn": "gelu",
    "input_gate_bias_prior": 0.0,
    "forget_gate_bias_prior": 0.0,
    "use_tanh": False,
}
WHOLE_DEFAULTS = {"share_query_passage_models": False, "share_text_models": True, "share_vision_models": True}
EXTENSION_DEFAULTS = {"cell_per_step": False, "share_cells": False, "image_reduce": False, "modules": []}


class ConfigFields:
    """Fields of one section of a config.

    Args:
        config: the section.
        where: its file, for messages.
        path: where it stands in the file: empty, or ends in a dot.
        defaults: of fields that are not there.
    """

    def __init__(self, config: Mapping[str, Any], where: Path, path: str, defaults: Mapping[str, Any]) -> None:
        self.config, self.where, self.path, self.defaults = config, where, path, defaults

    def __contains__(self, name: str) -> bool:
        return name in self.config

    def get(self, name: str, *kinds: type) -> Any:
        """A value of one of the types; a bool counts as a number only where bool is one of them."""
        if name not in self.config and name not in self.defaults:
            message = "is missing; is this the config of a ReT model?"
            raise self.error(name, message, code="checkpoint-field-missing")
        value = self.config.get(name, self.defaults.get(name))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            message = f"is {value!r}, which is no {wanted}"
            raise self.error(name, message, code="checkpoint-field-type", found=repr(value), expected=wanted)
        return value

    def flag(self, name: str) -> bool:
        """A bool; null is false, as to the published classes."""
        return bool(self.get(name, bool, type(None)))

    def count(self, name: str, least: int = 1) -> int:
        """A whole number."""
        value = self.get(name, int)
        if value < least:
            message = f"is {value}, and {least} is the least"
            raise self.error(name, message, code="checkpoint-field-too-small", found=value, least=least)
        return value

    def share(self, name: str) -> float:
        """A number from 0 to 1."""
        value = self.get(name, int, float)
        if not 0 <= value <= 1:
            message = f"is {value}, which is not from 0 to 1"
            raise self.error(name, message, code="checkpoint-field-share", found=value)
        return value

    def numbers(self, name: str, count: int, above: float) -> tuple[float, ...]:
        """A list of so many numbers above a bound."""
        values = self.get(name, list)
        good = [isinstance(v, int | float) and not isinstance(v, bool) and v > above for v in values]
        if len(values) != count or not all(good):
            message = f"is {values!r}; wanted {count} numbers" + (f" above {above}" if above == 0 else "")
            raise self.error(name, message, code="checkpoint-field-numbers", found=repr(values), expected=count)
        return tuple(values)

    def choice(self, name: str, choices: Mapping[str, Any]) -> str:
        """One of the keys of a table."""
        value = self.get(name, str)
        if value not in choices:
            message = f"is {value!r}, which is unknown; known: {', '.join(choices)}"
            raise self.error(name, message, code="checkpoint-field-choice", found=value, allowed=tuple(choices))
        return value

    def section(self, name: str, defaults: Mapping[str, Any]) -> ConfigFields:
        """A section inside this one."""
        return ConfigFields(self.get(name, Mapping), self.where, f"{self.path}{name}.", defaults)

    def extension(self, known: tuple[str, ...]) -> ConfigFields:
        """Our section, empty where there is none; a field of it that nobody knows would mean another model."""
        if EXTENSION not in self.config:
            return ConfigFields({}, self.where, f"{self.path}{EXTENSION}.", EXTENSION_DEFAULTS)
        section = self.section(EXTENSION, EXTENSION_DEFAULTS)
        for name in section.config:
            if name not in known:
                message = f"is unknown to this version of ret_lightning; known: {', '.join(known)}"
                raise section.error(name, message, code="checkpoint-field-unknown", allowed=known)
        return section

    def error(self, name: str, message: str, *, code: str, **values: Any) -> UserError:
        """The error of a field."""
        key = f"{self.path}{name}"
        return UserError(f"{self.where}: field {key} {message}", code=code, path=self.where, key=key, **values)


def modules_of(extension: ConfigFields) -> tuple[str, ...]:
    """The modules that a tower's extension names."""
    modules = extension.get("modules", list)
    if not all(isinstance(module, str) for module in modules):
        message = f"is {modules!r}; expected a list of module names"
        raise extension.error("modules", message, code="checkpoint-modules-not-names", found=repr(modules))
    return tuple(modules)


def text_positions(stack: BlockStack) -> int:
    """How many tokens a text may have where a config does not state it."""
    return stack.layout_config().get("max_position_embeddings", CLIP_POSITIONS)


def vision_size(stack: BlockStack) -> int:
    """The side of an image in pixels where a config does not state it."""
    return stack.layout_config().get("image_size", CLIP_IMAGES.size)
