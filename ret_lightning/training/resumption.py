"""Going on with a run that was cut off: which config and which checkpoint it goes on from, and what its logs keep."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from ret_lightning.atomic import UNFINISHED
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.training.checkpoint_files import whole_position
from ret_lightning.training.folder import CHECKPOINTS_FOLDER, CONFIG_FILE, METRICS_FILE
from ret_lightning.training.run_config import differences, flat, of_the_run

log = logging.getLogger(__name__)

# What the weights and the order of the rows are made of: with another value it would be another run.
FIXED = ("seed", "data", "backbone", "model", "recurrence", "gate", "loss", "retrieval", "init_from")
# Of these, what only says how the same thing is done.
FREE = (
    "data.num_workers", "data.eval_batch_size", "data.on_bad_row", "data.max_bad_fraction", "data.root", "loss.micro_batch",
    "loss.backend",
)  # fmt: skip
_OF_THE_COMMAND = ("resume", "output_dir")


def resumed_config(folder: Path, overrides: Sequence[str]) -> DictConfig:
    """The config of a run, moved to where its folder is now, with what the command line changes.

    Args:
        folder: the run's.
        overrides: of the command line; single values that exist in the run's config.

    Raises:
        ConfigError: if there is no run in the folder, or something is to be changed that cannot be.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ConfigError(f"resume={folder}: no run folder (it has no {CONFIG_FILE})")
    config = OmegaConf.load(file)
    config = OmegaConf.create(_moved(OmegaConf.to_container(config), str(config.output_dir), str(folder)))
    changed = False
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key in _OF_THE_COMMAND or key.startswith("hydra."):
            continue
        text, before = override.input_line, OmegaConf.select(config, key, default=_ABSENT)
        if override.is_delete() or override.is_sweep_override() or isinstance(before, DictConfig):
            raise ConfigError(
                f"resume={folder}: {text}: a resumed run can change single values only, as in trainer.max_epochs=20"
            )
        if key.split(".")[0] in FIXED and key not in FREE:
            raise ConfigError(
                f"resume={folder}: {text}: what the run is made of stays as it is; start a new one for that"
            )
        if before is _ABSENT and not (override.is_add() or override.is_force_add()):
            near = get_close_matches(key, flat(config), n=1)
            raise ConfigError(f"resume={folder}: no such key: {key}{f'; did you mean {near[0]}?' if near else ''}")
        with open_dict(config):
            OmegaConf.update(config, key, override.value(), force_add=True)
        changed = True
    if (folder / METRICS_FILE).exists() and not changed:
        raise ConfigError(
            f"resume={folder}: the run is finished ({METRICS_FILE} is there); to go on longer, say how long, "
            "for instance trainer.max_epochs=20"
        )
    return config


def same_run(folder: Path, config: DictConfig) -> bool:
    """Whether there is a run in the folder, to go on with.

    Args:
        folder: the run's, perhaps not there.
        config: resolved, of the run that is to be.

    Raises:
        ConfigError: if there is one, of another config.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        return False
    different = differences(of_the_run(OmegaConf.load(file)), of_the_run(config))
    if different:
        shown = ", ".join(f"{key}: {theirs} there, {ours} now" for key, (theirs, ours) in list(different.items())[:3])
        raise ConfigError(f"output_dir={folder} holds a run of another config ({shown}); choose another folder")
    return True


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of a run that is furthest on, torn ones passed over; None where there is none."""
    found: list[tuple[int, int, bool, Path]] = []
    for file in sorted((folder / CHECKPOINTS_FOLDER).glob("*.ckpt")):
        try:
            step, epoch = whole_position(file)
        except UserError as error:
            log.warning("passed over: %s", error)
            continue
        # At one and the same step last.ckpt was written last.
        found.append((step, epoch, file.stem == "last", file))
    return max(found)[-1] if found else None


def remove_unfinished_files(folder: Path) -> None:
    """Removes what a killed run had not finished writing, see `ret_lightning.atomic`."""
    for file in (folder / CHECKPOINTS_FOLDER).glob(".*"):
        if UNFINISHED.fullmatch(file.name):
            file.unlink(missing_ok=True)


def unfinished_checkpoint(folder: Path) -> bool:
    """Whether there is work in the folder that a new run would write over."""
    return any((folder / CHECKPOINTS_FOLDER).glob("*.ckpt"))


_ABSENT = object()


def _moved(value: Any, old: str, new: str) -> Any:
    """A config with one folder in place of another, at the beginning of any string."""
    if isinstance(value, dict):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    return value
