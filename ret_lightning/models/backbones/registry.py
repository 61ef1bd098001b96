"""Which backbones there are: one per config of the group `backbone`.

python -m ret_lightning.models.backbones [--config-dir DIR]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ret_lightning.config.build import build
from ret_lightning.errors import ConfigError, UserError, one_line
from ret_lightning.models.backbones.base import Backbone, BlockStack
from ret_lightning.models.layer_plans import LayerPlan, Published

_CONFIGS = "ret_lightning.conf"
_GROUP = "backbone"


@dataclass(frozen=True)
class BackboneCard:
    """A backbone that a config names.

    Attributes:
        name: the option, `backbone=NAME`.
        description: the first sentence of its config, which is a comment.
        family: `model_type` of the text stack and of the vision stack, by which a checkpoint names them.
        text: width of a state and number of blocks of the text stack.
        vision: width of a state and number of blocks of the vision stack.
        plan: the default layer plan, of `recurrence=published`.
        problem: why the config cannot be built as it is; empty where it can. Without the other facts, which are then None.
    """

    name: str
    description: str
    family: tuple[str, str] | None = None
    text: tuple[int, int] | None = None
    vision: tuple[int, int] | None = None
    plan: LayerPlan | None = None
    problem: str = ""


def list_backbones(config_dirs: Sequence[str | Path] = ()) -> list[BackboneCard]:
    """The backbones that `backbone=NAME` can name, in the order of their names.

    Each is built as its config states, with random weights on the meta device: nothing is downloaded, no weight is allocated.

    Args:
        config_dirs: folders of further configs, as of the option `--config-dir`; of several configs of one name, the first
            counts, ours before them. Classes outside this package need RET_LIGHTNING_TARGETS.

    Raises:
        ConfigError: if a folder does not exist.
    """
    folders = [Path(str(folder)).expanduser().absolute() for folder in config_dirs]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"config_dirs: {folder}: no such folder", code="backbone-folder-missing", path=folder)
    places = [resources.files(_CONFIGS) / _GROUP, *(folder / _GROUP for folder in folders)]
    files = {file.name: file for place in reversed(places) if place.is_dir() for file in place.iterdir()}
    names = sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))
    searched = ",".join(json.dumps(f"file://{folder}", ensure_ascii=False) for folder in folders)
    # A caller may be inside a Hydra application, whose state the composition replaces.
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(_CONFIGS, version_base="1.3"):
            cards = [_card(name, files[f"{name}.yaml"].read_text(encoding="utf-8"), searched) for name in names]
    finally:
        GlobalHydra.instance().hydra = before
    return cards


def table(cards: Sequence[BackboneCard]) -> str:
    """The cards as lines of aligned columns."""
    rows = [("backbone", "text", "vision", "steps", "family", "description")]
    rows += [_row(card) for card in cards]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(card: BackboneCard) -> tuple[str, ...]:
    if card.text is None or card.vision is None or card.plan is None or card.family is None:
        return card.name, "-", "-", "-", "-", f"{card.description} ({card.problem})"
    sizes = [f"{blocks} x {width}" for width, blocks in (card.text, card.vision)]
    return card.name, *sizes, str(card.plan.steps), ", ".join(dict.fromkeys(card.family)), card.description


def _card(name: str, content: str, searched: str) -> BackboneCard:
    first = content.lstrip().partition("\n")[0]
    description = first.lstrip("# ").partition(". ")[0].rstrip(".") if first.startswith("#") else ""
    try:
        # No primary config: Hydra would not find it in the folders that are searched.
        config = compose(overrides=[f"+{_GROUP}={name}", *([f"hydra.searchpath=[{searched}]"] if searched else [])])
        backbone = _built(config[_GROUP])
        plan = Published().plan(backbone.text.num_blocks, backbone.vision.num_blocks, backbone.published_plan)
    except (UserError, HydraException, OmegaConfBaseException, YAMLError) as error:
        problem = error.message if isinstance(error, UserError) else one_line(error)
        return BackboneCard(name, description, problem=problem)
    return BackboneCard(
        name,
        description,
        family=(_family(backbone.text), _family(backbone.vision)),
        text=(backbone.text.width, backbone.text.num_blocks),
        vision=(backbone.vision.width, backbone.vision.num_blocks),
        plan=plan,
    )


def _built(config: DictConfig) -> Backbone:
    if "pretrained" in config:
        config.pretrained = None
    with torch.device("meta"):
        backbone = build(config)
    if not isinstance(backbone, Backbone):
        raise ConfigError(
            f"the config builds a {type(backbone).__name__}; expected a ret_lightning.models.Backbone: set _target_ to a "
            "function that returns one",
            code="backbone-of-wrong-type",
            found=type(backbone).__name__,
        )
    return backbone


def _family(stack: BlockStack) -> str:
    try:
        return stack.layout_config()["model_type"]
    except ConfigError:  # a stack that cannot be stored
        return type(stack).__name__
