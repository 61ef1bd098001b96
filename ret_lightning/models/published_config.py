"""`config.json` of the published layout against the architecture of a retriever, both ways.

What the published classes cannot express stands in a section `ret_lightning` of a tower's config, or of the whole one:

| where | field | what |
|---|---|---|
| tower | `gate` | name of the gate, where it is not the published one |
| tower | `layers` | `{"text": [...], "vision": [...]}`, where that is no published plan |
| tower | `cell_per_step` | true: a cell for each step |
| tower | `image_mean`, `image_std` | where they are not CLIP's |
| whole | `share_cells` | true: both towers have the same cell (stored twice, as the published classes want it) |

A model with any of the first three has a `layer_strategy` that the published classes refuse, lest they compute something
else with it; so has one with heads or an MLP of other sizes than theirs, H / 64 and 4 H.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import nn

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from ret_lightning.models.backbone import Backbone, BlockStack
from ret_lightning.models.cell import ACTIVATIONS, RetCell
from ret_lightning.models.gates import Gate, LSTMGate, gate_named
from ret_lightning.models.layers import PUBLISHED_PLANS, LayerPlan
from ret_lightning.models.retriever import RetRetriever
from ret_lightning.models.tower import RetTower

EXTENSION = "ret_lightning"
_BACKBONE_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "patch_size", "image_size")
_CLIP_IMAGES, _CLIP_POSITIONS = ImageTransform(), 77

# What the published classes take where a config is silent.
_TOWER_DEFAULTS: dict[str, Any] = {
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
_WHOLE_DEFAULTS = {"share_query_passage_models": False, "share_text_models": True, "share_vision_models": True}


def retriever_from_config(config: Mapping[str, Any], where: Path) -> RetRetriever:
    """A retriever of random weights with the architecture of a config.

    Args:
        config: the content of a `config.json`; kept, so that saving writes the fields that are not ours as they are.
        where: its file, for messages.

    Raises:
        UserError: naming file and field, if a field is missing or cannot be served.
    """
    whole = _Fields(config, where, "", _WHOLE_DEFAULTS)
    query = whole.section("query_config", _TOWER_DEFAULTS)
    query_tower = _tower(query, _stack(query, "text_config"), _stack(query, "vision_config"))
    sides = [(query, query_tower)]
    if not whole.get("share_query_passage_models", bool):
        passage = whole.section("passage_config", _TOWER_DEFAULTS)
        share_text, share_vision = whole.get("share_text_models", bool), whole.get("share_vision_models", bool)
        passage_tower = _tower(
            passage,
            query_tower.text_backbone if share_text else _stack(passage, "text_config"),
            query_tower.vision_backbone if share_vision else _stack(passage, "vision_config"),
            list(query_tower.cells) if whole.extension().get("share_cells", False) else None,
        )
        sides.append((passage, passage_tower))
    _set_trained(sides)
    retriever = RetRetriever(query_tower, sides[-1][1])
    retriever.stored_config = copy.deepcopy(dict(config))
    return retriever


def config_of(retriever: RetRetriever) -> dict[str, Any]:
    """The content of the `config.json` of a retriever; for one that was read and not changed, what was read.

    Raises:
        ConfigError: if a part does not say how it is stored.
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
        "share_query_passage_models": passage is query,
        "share_text_models": passage.text_backbone is query.text_backbone,
        "share_vision_models": passage.vision_backbone is query.vision_backbone,
        "torch_dtype": str(query.start.dtype).removeprefix("torch."),
    }
    config["query_config"] = _tower_config(query, stored.get("query_config") or {})
    config["passage_config"] = (
        _tower_config(passage, stored.get("passage_config") or {})
        if passage is not query
        else stored.get("passage_config", config["query_config"])
    )
    config.pop(EXTENSION, None)
    if passage is not query and passage.cells[0] is query.cells[0]:
        config[EXTENSION] = {"share_cells": True}
    return config


def architecture(retriever: RetRetriever) -> dict[str, Any]:
    """What makes two retrievers the same function of their weights, by the names of the config group options."""
    tower, passage = retriever.query_tower, retriever.passage_tower
    cell: RetCell = tower.cells[0]
    text, vision = tower.text_backbone.layout_config(), tower.vision_backbone.layout_config()
    described = {
        "gate": _gate_name(cell.gate),
        **{f"gate.{name}": value for name, value in cell.gate.settings.items()},
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
        "model.share_towers": passage is tower,
    }
    for name, config in (("text", text), ("vision", vision)):
        described |= {f"backbone.{name}.{key}": value for key, value in config.items() if key in _BACKBONE_SIZES}
    return described


def is_published_architecture(retriever: RetRetriever) -> bool:
    """Whether the published classes can read what is saved of it."""
    return all(
        _tower_config(tower, {})["layer_strategy"] in PUBLISHED_PLANS
        for tower in (retriever.query_tower, retriever.passage_tower)
    )


def _output_size(tower: RetTower) -> int:
    return tower.output.out_features if isinstance(tower.output, nn.Linear) else 0


def _tower_config(tower: RetTower, stored: Mapping[str, Any]) -> dict[str, Any]:
    cell: RetCell = tower.cells[0]
    gate = cell.gate
    plan_name = next((name for name, plan in PUBLISHED_PLANS.items() if plan == tower.plan), None)
    extension: dict[str, Any] = {}
    if type(gate) is not LSTMGate:
        extension["gate"] = _gate_name(gate)
    if plan_name is None:
        extension["layers"] = {"text": list(tower.plan.text), "vision": list(tower.plan.vision)}
    if len(tower.cells) > 1:
        extension["cell_per_step"] = True
    other_sizes = cell.num_heads * 64 != cell.hidden_size or cell.intermediate_size != 4 * cell.hidden_size
    if extension or other_sizes:
        plan_name = EXTENSION
        extension.setdefault("layers", {"text": list(tower.plan.text), "vision": list(tower.plan.vision)})
    images = tower.image_transform
    if isinstance(images, ImageTransform) and (images.mean, images.std) != (_CLIP_IMAGES.mean, _CLIP_IMAGES.std):
        extension |= {"image_mean": list(images.mean), "image_std": list(images.std)}
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
        "input_gate_bias_prior": gate.settings["input_bias"],
        "forget_gate_bias_prior": gate.settings["forget_bias"],
        "use_tanh": gate.settings["tanh"],
        "late_proj_output_size": _output_size(tower),
        "layer_strategy": plan_name,
        "use_pooler_features": tower.pooled,
        "is_text_frozen": not tower.text_backbone.trained,
        "is_vision_frozen": not tower.vision_backbone.trained,
        "text_config": {**(stored.get("text_config") or {}), **tower.text_backbone.layout_config()},
        "vision_config": {**(stored.get("vision_config") or {}), **tower.vision_backbone.layout_config()},
    }
    config.pop(EXTENSION, None)
    return config | ({EXTENSION: extension} if extension else {})


def _gate_name(gate: Gate) -> str:
    if not gate.name:
        raise ConfigError(
            f"{type(gate).__name__} cannot be stored in a checkpoint: give the class a `name`, see models/gates.py"
        )
    return gate.name


class _Fields:
    """The fields of a config, checked as they are read."""

    def __init__(self, config: Mapping[str, Any], where: Path, path: str, defaults: Mapping[str, Any]) -> None:
        self.config, self.where, self.path, self.defaults = config, where, path, defaults

    def get(self, name: str, *kinds: type) -> Any:
        value = self.config.get(name, self.defaults.get(name))
        if value is None and name not in self.config:
            raise self.error(f"field {self.path}{name} is missing; is this the config of a ReT model?")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise self.error(f"field {self.path}{name} is {value!r}, which is no {wanted}")
        return value

    def choice(self, name: str, choices: Mapping[str, Any]) -> str:
        value = self.get(name, str)
        if value not in choices:
            raise self.error(f"{self.path}{name}={value!r} is unknown; known: {', '.join(choices)}")
        return value

    def section(self, name: str, defaults: Mapping[str, Any]) -> _Fields:
        return _Fields(self.get(name, Mapping), self.where, f"{self.path}{name}.", defaults)

    def extension(self) -> Mapping[str, Any]:
        return self.get(EXTENSION, Mapping) if EXTENSION in self.config else {}

    def error(self, message: str) -> UserError:
        return UserError(f"{self.where}: {message}")


def _plan(config: _Fields) -> LayerPlan:
    layers = config.extension().get("layers")
    if layers is None:
        return PUBLISHED_PLANS[config.choice("layer_strategy", PUBLISHED_PLANS)]
    try:
        return LayerPlan(tuple(map(int, layers["text"])), tuple(map(int, layers["vision"])))
    except (TypeError, KeyError, ValueError) as error:
        raise config.error(
            f"{config.path}{EXTENSION}.layers={layers!r} wants two lists of numbers, text and vision"
        ) from error


def _cells(config: _Fields, plan: LayerPlan) -> list[RetCell]:
    hidden_size = config.get("hidden_size", int)
    extension = config.extension()
    config.defaults = {
        "num_attention_heads": hidden_size // 64,
        "intermediate_size": 4 * hidden_size,
        **config.defaults,
    }
    gate = gate_named(extension["gate"]) if "gate" in extension else LSTMGate

    def cell() -> RetCell:
        return RetCell(
            gate(
                hidden_size,
                input_bias=config.get("input_gate_bias_prior", int, float),
                forget_bias=config.get("forget_gate_bias_prior", int, float),
                tanh=config.get("use_tanh", bool),
            ),
            hidden_size=hidden_size,
            num_tokens=config.get("num_queries", int),
            num_heads=config.get("num_attention_heads", int),
            intermediate_size=config.get("intermediate_size", int),
            dropout=config.get("dropout_p", int, float),
            attention_dropout=config.get("attention_dropout", int, float),
            activation=config.choice("activation_fn", ACTIVATIONS),
        )

    return [cell() for _ in range(plan.steps if extension.get("cell_per_step", False) else 1)]


def _tower(config: _Fields, text: BlockStack, vision: BlockStack, cells: list[RetCell] | None = None) -> RetTower:
    extension, plan = config.extension(), _plan(config)
    size, pooled = config.get("late_proj_output_size", int), config.get("use_pooler_features", bool)
    backbone = Backbone(
        text,
        vision,
        ClipTokenizer(text.layout_config().get("max_position_embeddings", _CLIP_POSITIONS)),
        ImageTransform(
            vision.layout_config().get("image_size", _CLIP_IMAGES.size),
            extension.get("image_mean", _CLIP_IMAGES.mean),
            extension.get("image_std", _CLIP_IMAGES.std),
        ),
    )
    try:
        return RetTower(backbone, plan, cells or _cells(config, plan), size, pooled)
    except UserError as error:
        raise config.error(f"{config.path.rstrip('.')}: {error}") from error


def _set_trained(sides: list[tuple[_Fields, RetTower]]) -> None:
    """A stack of both towers is trained up to the last block that either uses."""
    for field, stack_of, blocks_of in (
        ("is_text_frozen", attrgetter("text_backbone"), attrgetter("plan.text")),
        ("is_vision_frozen", attrgetter("vision_backbone"), attrgetter("plan.vision")),
    ):
        for _, owner in sides:
            users = [(config, tower) for config, tower in sides if stack_of(tower) is stack_of(owner)]
            trained = any(not config.get(field, bool) for config, _ in users)
            stack_of(owner).set_trained(trained, max(max(blocks_of(tower)) for _, tower in users))


def _stack(config: _Fields, field: str) -> BlockStack:
    from ret_lightning.models import clip_transformers  # noqa: F401  the stacks that the published models have

    sizes = config.section(field, {})
    model_type = sizes.get("model_type", str)
    known = {kind.__dict__["model_type"]: kind for kind in _subclasses(BlockStack) if "model_type" in kind.__dict__}
    if model_type not in known:
        raise sizes.error(
            f"{sizes.path}model_type={model_type!r} is unknown; known: {', '.join(sorted(known))}; a backbone of your own "
            "is known once its module is imported"
        )
    try:
        stack = known[model_type].from_layout_config(sizes.config)
    except UserError as error:
        raise sizes.error(f"{config.path}{field}: {error}") from error
    stack.source = sizes.config.get("_name_or_path") or ""
    return stack


def _subclasses(kind: type) -> Iterator[type]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
