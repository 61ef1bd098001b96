"""Validated access to the fields of a checkpoint's `config.json`, and this project's extension of the published layout.

Settings that the published classes do not support are stored in a section `ret_lightning` of the config of a tower, or of
the top level. Each field is present only if it differs from the published model:

| section | field | content |
|---|---|---|
| tower | `gate` | name of the gate |
| tower | `gate_settings` | arguments of its constructor, if there are others than the three with published fields |
| tower | `modules` | modules of user-defined classes |
| tower | `tokenizer`, `image_transform` | `{"name": ..., "settings": {...}, "files": [...]}`, if not those of CLIP |
| tower | `layers` | layer plan, `{"text": [...], "vision": [...]}` |
| tower | `cell_per_step` | true: one cell per step |
| tower | `image_mean`, `image_std` | normalisation of images, if not that of CLIP |
| tower | `image_size` | side of an image in pixels, if not that of the vision backbone |
| tower | `image_reduce` | true: large JPEGs are decoded at a reduced size |
| tower | `max_length` | maximum tokens per text, if not the number of positions of the text backbone |
| top level | `share_cells` | true: both towers share their cells, which are stored twice for the published classes |

A model with any of the first seven fields, or with other numbers of heads or MLP widths than H // 64 and 4 H, has a
`layer_strategy` that the published classes reject, so that they never compute a different function.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ret_lightning.errors import UserError
from ret_lightning.inputs import ImageTransform
from ret_lightning.models.backbones.base import BlockStack

EXTENSION = "ret_lightning"
TOWER_EXTENSION = (
    "gate", "gate_settings", "modules", "tokenizer", "image_transform", "layers", "cell_per_step", "image_mean", "image_std",
    "image_size", "image_reduce", "max_length",
)  # fmt: skip
WHOLE_EXTENSION = ("share_cells",)

# The image transform and text length of CLIP, the defaults for checkpoints without these fields.
CLIP_IMAGES, CLIP_POSITIONS = ImageTransform(), 77

# The defaults of the published classes.
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


T = TypeVar("T", bound=str)


class ConfigFields:
    """Validated access to the fields of one section of a config.

    Args:
        config: Content of the section.
        where: Path of the file, for messages.
        path: Key of the section in the file, empty or ending in a dot.
        defaults: Values of missing fields.
    """

    def __init__(self, config: Mapping[str, Any], where: Path, path: str, defaults: Mapping[str, Any]) -> None:
        self.config, self.where, self.path, self.defaults = config, where, path, defaults

    def __contains__(self, name: str) -> bool:
        return name in self.config

    def get(self, name: str, *kinds: type) -> Any:
        """Return a value of one of the given types. A bool is accepted as a number only if `bool` is one of them.

        Raises:
            UserError: If the field is missing without a default, or has another type.
        """
        if name not in self.config and name not in self.defaults:
            message = "is missing; expected the config of a ReT model"
            raise self.error(name, message, code="checkpoint-field-missing")
        value = self.config.get(name, self.defaults.get(name))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            message = f"is {value!r}; expected {expected}"
            raise self.error(name, message, code="checkpoint-field-type", found=repr(value), expected=expected)
        return value

    def flag(self, name: str) -> bool:
        """Return a bool; null counts as false, as in the published classes."""
        return bool(self.get(name, bool, type(None)))

    def count(self, name: str, least: int = 1) -> int:
        """Return an integer of at least `least`; otherwise raise UserError."""
        value = self.get(name, int)
        if value < least:
            message = f"is {value}; expected at least {least}"
            raise self.error(name, message, code="checkpoint-field-too-small", found=value, least=least)
        return value

    def fraction(self, name: str) -> float:
        """Return a number from 0 to 1; otherwise raise UserError."""
        value = self.get(name, int, float)
        if not 0 <= value <= 1:
            message = f"is {value}; expected a number from 0 to 1"
            raise self.error(name, message, code="checkpoint-field-share", found=value)
        return value

    def numbers(self, name: str, count: int, above: float) -> tuple[float, ...]:
        """Return a list of `count` numbers, each larger than `above`; otherwise raise UserError."""
        values = self.get(name, list)
        good = [isinstance(v, int | float) and not isinstance(v, bool) and v > above for v in values]
        if len(values) != count or not all(good):
            message = f"is {values!r}; expected {count} numbers" + (f" above {above}" if above == 0 else "")
            raise self.error(name, message, code="checkpoint-field-numbers", found=repr(values), expected=count)
        return tuple(values)

    def choice(self, name: str, choices: Mapping[T, Any]) -> T:
        """Return one of the keys of `choices`; otherwise raise UserError."""
        value: T = self.get(name, str)
        if value not in choices:
            message = f"is {value!r}; expected one of {', '.join(choices)}"
            raise self.error(name, message, code="checkpoint-field-choice", found=value, allowed=tuple(choices))
        return value

    def section(self, name: str, defaults: Mapping[str, Any]) -> ConfigFields:
        """Return the fields of a nested section."""
        return ConfigFields(self.get(name, Mapping), self.where, f"{self.path}{name}.", defaults)

    def extension(self, known: tuple[str, ...]) -> ConfigFields:
        """Return the fields of the section `ret_lightning`, empty if there is none.

        Raises:
            UserError: If it has an unknown field, which may change the function of the model.
        """
        if EXTENSION not in self.config:
            return ConfigFields({}, self.where, f"{self.path}{EXTENSION}.", EXTENSION_DEFAULTS)
        section = self.section(EXTENSION, EXTENSION_DEFAULTS)
        for name in section.config:
            if name not in known:
                message = f"is unknown to this version of ret_lightning; expected one of {', '.join(known)}"
                raise section.error(name, message, code="checkpoint-field-unknown", allowed=known)
        return section

    def error(self, name: str, message: str, *, code: str, **values: Any) -> UserError:
        """Return the error for a field."""
        key = f"{self.path}{name}"
        return UserError(f"{self.where}: field {key} {message}", code=code, path=self.where, key=key, **values)


def modules_of(extension: ConfigFields) -> tuple[str, ...]:
    """Return the modules of user-defined classes that the extension of a tower lists."""
    modules = extension.get("modules", list)
    if not all(isinstance(module, str) for module in modules):
        message = f"is {modules!r}; expected a list of module names"
        raise extension.error("modules", message, code="checkpoint-modules-not-names", found=repr(modules))
    return tuple(modules)


def text_positions(stack: BlockStack) -> int:
    """Return the default maximum number of tokens per text for a text stack."""
    return stack.layout_config().get("max_position_embeddings", CLIP_POSITIONS)


def vision_size(stack: BlockStack) -> int:
    """Return the default side of an image, in pixels, for a vision stack."""
    return stack.layout_config().get("image_size", CLIP_IMAGES.size)
