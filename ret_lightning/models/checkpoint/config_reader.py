"""Build a retriever from a checkpoint's `config.json`. `config_fields` documents the fields."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from ret_lightning.errors import UserError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from ret_lightning.models.backbones.base import STACKS, Backbone, BlockStack, find_stack
from ret_lightning.models.cell import ACTIVATIONS, RetCell
from ret_lightning.models.checkpoint.config_fields import (
    CLIP_IMAGES,
    EXTENSION,
    TOWER_DEFAULTS,
    TOWER_EXTENSION,
    WHOLE_DEFAULTS,
    WHOLE_EXTENSION,
    ConfigFields,
    modules_of,
    text_positions,
    vision_size,
)
from ret_lightning.models.checkpoint.preprocessors import KINDS, read_entry
from ret_lightning.models.gates import Gate, LSTMGate, gate_named
from ret_lightning.models.layer_plans import PUBLISHED_PLANS, LayerPlan
from ret_lightning.models.tower import RetTower
from ret_lightning.models.two_towers import TwoTowers
from ret_lightning.runtime.git_lfs import refuse_lfs_pointer

RetrieverT = TypeVar("RetrieverT", bound=TwoTowers)

_CELL_FIELDS = (
    "hidden_size", "num_queries", "num_attention_heads", "intermediate_size", "activation_fn", "use_tanh",
    "input_gate_bias_prior", "forget_gate_bias_prior", "dropout_p", "attention_dropout",
)  # fmt: skip


def retriever_from_config(
    config: Mapping[str, Any],
    where: Path,
    retriever_class: type[RetrieverT] = TwoTowers,  # type: ignore[assignment]  # TypeVar defaults need Python 3.13
    read: Callable[[str], bytes] | None = None,
) -> RetrieverT:
    """Build a retriever with random weights and the architecture of a config.

    Args:
        config: Content of a `config.json`. A copy is stored, so that saving preserves unknown fields.
        where: Path of the file, for messages.
        retriever_class: `TwoTowers` or a subclass, such as `RetRetriever`.
        read: Returns the content of a file, given its path in the folder of the checkpoint; None reads it from the folder of
            `where`.

    Returns:
        The retriever.

    Raises:
        UserError: If a field is missing or invalid. The error reports the file and the field.
    """
    try:
        return _retriever(config, where, retriever_class, read or partial(_read_file, where.parent))
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        # A library rejected a combination of sizes that are valid individually.
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"{where}: the model cannot be built from this config ({type(error).__name__}: {reason})",
            code="checkpoint-not-built",
            path=where,
            reason=reason,
        ) from error


def _retriever(
    config: Mapping[str, Any], where: Path, retriever_class: type[RetrieverT], read: Callable[[str], bytes]
) -> RetrieverT:
    whole = ConfigFields(config, where, "", WHOLE_DEFAULTS)
    query = whole.section("query_config", TOWER_DEFAULTS)
    query_tower = _tower(query, _stack(query, "text_config"), _stack(query, "vision_config"), read)
    sides = [(query, query_tower)]
    if not whole.flag("share_query_passage_models"):
        passage = whole.section("passage_config", TOWER_DEFAULTS)
        cells = None
        if whole.extension(WHOLE_EXTENSION).flag("share_cells"):
            _check_same_cells(query, passage)
            cells = list(query_tower.cells)
        passage_tower = _tower(
            passage,
            query_tower.text_backbone if whole.flag("share_text_models") else _stack(passage, "text_config"),
            query_tower.vision_backbone if whole.flag("share_vision_models") else _stack(passage, "vision_config"),
            read,
            cells,
        )
        sides.append((passage, passage_tower))
    _set_trained(sides)
    retriever = retriever_class(query_tower, sides[-1][1])
    retriever.stored_config = copy.deepcopy(dict(config))
    return retriever


def _tower(
    config: ConfigFields,
    text: BlockStack,
    vision: BlockStack,
    read: Callable[[str], bytes],
    cells: list[RetCell] | None = None,
) -> RetTower:
    extension, plan = config.extension(TOWER_EXTENSION), _plan(config)
    preprocessors: dict[str, Any] = {
        kind: read_entry(extension, kind, modules_of(extension), read) for kind in KINDS if kind in extension
    }
    if "tokenizer" not in preprocessors:
        longest = extension.count("max_length") if "max_length" in extension else text_positions(text)
        preprocessors["tokenizer"] = ClipTokenizer(longest)
    if "image_transform" not in preprocessors:
        mean: Any = extension.numbers("image_mean", 3, -float("inf")) if "image_mean" in extension else CLIP_IMAGES.mean
        std: Any = extension.numbers("image_std", 3, 0) if "image_std" in extension else CLIP_IMAGES.std
        preprocessors["image_transform"] = ImageTransform(
            extension.count("image_size") if "image_size" in extension else vision_size(vision),
            mean,
            std,
            extension.flag("image_reduce"),
        )
    backbone = Backbone(text, vision, **preprocessors)
    # For the published classes, null and 0 both mean no output map.
    no_map = config.get("late_proj_output_size", int, type(None)) is None
    size = 0 if no_map else config.count("late_proj_output_size", 0)
    with _located(config):
        return RetTower(backbone, plan, cells or _cells(config, plan), size, config.flag("use_pooler_features"))


def _read_file(folder: Path, path: str) -> bytes:
    refuse_lfs_pointer(folder / path)
    try:
        return (folder / path).read_bytes()
    except OSError as error:
        raise UserError(
            f"checkpoint {folder}: {path} cannot be read ({error.strerror}); copy the complete folder of the checkpoint",
            code="checkpoint-file-missing",
            path=folder / path,
        ) from error


def _plan(config: ConfigFields) -> LayerPlan:
    extension = config.extension(TOWER_EXTENSION)
    if "layers" not in extension:
        return PUBLISHED_PLANS[config.choice("layer_strategy", PUBLISHED_PLANS)]
    layers = extension.section("layers", {})
    blocks = [layers.get(name, list) for name in ("text", "vision")]
    for name, listed in zip(("text", "vision"), blocks, strict=True):
        if not all(isinstance(block, int) and not isinstance(block, bool) for block in listed):
            message = f"is {listed!r}; expected a list of integers"
            raise layers.error(name, message, code="checkpoint-layers-not-numbers", found=repr(listed))
    return LayerPlan(*map(tuple, blocks))


def _cells(config: ConfigFields, plan: LayerPlan) -> list[RetCell]:
    hidden_size = config.count("hidden_size")
    extension = config.extension(TOWER_EXTENSION)
    config.defaults = {
        "num_attention_heads": hidden_size // 64,
        "intermediate_size": 4 * hidden_size,
        **config.defaults,
    }
    gate: type[Gate] = LSTMGate
    if "gate" in extension:
        with _located(extension):
            gate = gate_named(extension.get("gate", str), modules_of(extension))
    settings = {
        "input_bias": config.get("input_gate_bias_prior", int, float),
        "forget_bias": config.get("forget_gate_bias_prior", int, float),
        "tanh": config.flag("use_tanh"),
    }
    if "gate_settings" in extension:
        settings = dict(extension.get("gate_settings", Mapping))

    def cell() -> RetCell:
        return RetCell(
            gate(hidden_size, **copy.deepcopy(settings)),
            hidden_size=hidden_size,
            num_tokens=config.count("num_queries"),
            num_heads=config.count("num_attention_heads"),
            intermediate_size=config.count("intermediate_size"),
            dropout=config.fraction("dropout_p"),
            attention_dropout=config.fraction("attention_dropout"),
            activation=config.choice("activation_fn", ACTIVATIONS),
        )

    return [cell() for _ in range(plan.steps if extension.flag("cell_per_step") else 1)]


def _check_same_cells(query: ConfigFields, passage: ConfigFields) -> None:
    """Raise UserError if the towers describe the cell that they share differently."""
    ours, theirs = (config.extension(TOWER_EXTENSION).config for config in (query, passage))
    for name in _CELL_FIELDS:
        if query.config.get(name) != passage.config.get(name):
            raise _other_cell(passage, name)
    for name in ("gate", "gate_settings", "cell_per_step"):
        if ours.get(name) != theirs.get(name):
            raise _other_cell(passage, f"{EXTENSION}.{name}")


def _other_cell(passage: ConfigFields, name: str) -> UserError:
    message = f"differs from query_config, but {EXTENSION}.share_cells is true"
    return passage.error(name, message, code="checkpoint-cells-differ")


def _set_trained(sides: list[tuple[ConfigFields, RetTower]]) -> None:
    """Set the trained part of each stack, up to the last block that a tower uses; the query config decides for a shared one."""
    for field, stack_of, blocks_of in (
        ("is_text_frozen", attrgetter("text_backbone"), attrgetter("plan.text")),
        ("is_vision_frozen", attrgetter("vision_backbone"), attrgetter("plan.vision")),
    ):
        done: list[BlockStack] = []
        for config, tower in sides:
            stack = stack_of(tower)
            if not any(stack is other for other in done):
                used = max(max(blocks_of(other)) for _, other in sides if stack_of(other) is stack)
                stack.set_trained(not config.flag(field), used)
                done.append(stack)


def _stack(config: ConfigFields, field: str) -> BlockStack:
    sizes = config.section(field, {})
    model_type = sizes.get("model_type", str)
    kind, hint = find_stack(model_type, modules_of(config.extension(TOWER_EXTENSION)))
    if kind is None:
        hint = hint or "import the module of a user-defined backbone first"
        raise sizes.error(
            "model_type",
            f"is {model_type!r}; expected one of {', '.join(sorted(STACKS))}; {hint}",
            code="checkpoint-backbone-unknown",
            found=model_type,
            allowed=tuple(sorted(STACKS)),
        )
    with _located(sizes):
        stack = kind.from_layout_config(sizes.config)
    stack.source = sizes.config.get("_name_or_path") or ""
    return stack


@contextmanager
def _located(config: ConfigFields) -> Iterator[None]:
    """Prefix the errors raised in the block with the file and the section."""
    try:
        yield
    except UserError as error:
        if error.message.startswith(f"{config.where}: "):
            raise
        message = f"{config.where}: {config.path.rstrip('.')}: {error.message}"
        raise UserError(message, code=error.code, **{**error.values, "path": config.where}) from error
