"""The list of available backbones, one per config of the group `backbone`.

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
    """A backbone of the config group `backbone`.

    Attributes:
        name: Name of the config, for `backbone=NAME`.
        description: First sentence of the comment at the top of the config.
        family: `model_type` of the text and the vision stack, their names in checkpoints.
        text: Width of a state and number of blocks of the text stack.
        vision: Width of a state and number of blocks of the vision stack.
        plan: Layer plan of `recurrence=published`.
        problem: Why the config cannot be built; the four attributes above are then None. Empty otherwise.
    """

    name: str
    description: str
    family: tuple[str, str] | None = None
    text: tuple[int, int] | None = None
    vision: tuple[int, int] | None = None
    plan: LayerPlan | None = None
    problem: str = ""


def list_backbones(config_dirs: Sequence[str | Path] = ()) -> list[BackboneCard]:
    """List the backbones that `backbone=NAME` accepts, sorted by name.

    Each backbone is built from its config with random weights on the meta device, so nothing is downloaded and no memory is
    allocated for weights.

    Args:
        config_dirs: Folders of additional configs, as for the option `--config-dir`. Among configs of the same name the first
            one is used; those of this package take precedence. Classes outside this package need RET_LIGHTNING_TARGETS.

    Returns:
        One card per config.

    Raises:
        ConfigError: If a folder does not exist.
    """
    folders = [Path(str(folder)).expanduser().absolute() for folder in config_dirs]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"config_dirs: the folder {folder} does not exist", code="backbone-folder-missing", path=folder
            )
    groups = [resources.files(_CONFIGS) / _GROUP, *(folder / _GROUP for folder in folders)]
    files = {file.name: file for group in reversed(groups) if group.is_dir() for file in group.iterdir()}
    names = sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))
    searched = ",".join(json.dumps(f"file://{folder}", ensure_ascii=False) for folder in folders)
    # Restore the state of a Hydra application that may be running, which the composition replaces.
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(_CONFIGS, version_base="1.3"):
            cards = [_card(name, files[f"{name}.yaml"].read_text(encoding="utf-8"), searched) for name in names]
    finally:
        GlobalHydra.instance().hydra = before
    return cards


def table(cards: Sequence[BackboneCard]) -> str:
    """Format the cards as a table of aligned columns."""
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
        # Without a primary config, which Hydra would not find in the additional folders.
        config = compose(overrides=[f"+{_GROUP}={name}", *([f"hydra.searchpath=[{searched}]"] if searched else [])])
        backbone = _built(config[_GROUP])
        plan = Published().plan(backbone.text.num_blocks, backbone.vision.num_blocks, backbone.published_plan)
    except (UserError, HydraException, OmegaConfBaseException, YAMLError) as error:
        problem = str(error) if isinstance(error, UserError) else one_line(error)
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
            f"backbone: expected a ret_lightning.models.Backbone, got {type(backbone).__name__}; set _target_ to a "
            "function that returns a Backbone",
            code="backbone-of-wrong-type",
            found=type(backbone).__name__,
        )
    return backbone


def _family(stack: BlockStack) -> str:
    try:
        return stack.layout_config()["model_type"]
    except ConfigError:  # a stack that cannot be stored
        return type(stack).__name__
