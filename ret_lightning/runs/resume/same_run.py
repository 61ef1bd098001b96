"""Resuming a run that was interrupted: whether its folder holds the same run, and from which checkpoint it continues."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.runs.identity import differences, of_the_run
from ret_lightning.runs.resume.resumed_config import stored_config
from ret_lightning.runtime.run_layout import CHECKPOINTS_FOLDER, CONFIG_FILE
from ret_lightning.training.checkpointing.checkpoint_io import read_position

log = logging.getLogger(__name__)


def same_run(folder: Path, config: DictConfig) -> bool:
    """Whether a folder holds a run of this config, to be resumed.

    Args:
        folder: the run's; it may be missing.
        config: resolved, of the run that is asked for.

    Raises:
        ConfigError: if it holds a run of another config.
    """
    if not (folder / CONFIG_FILE).is_file():
        return False
    different = differences(of_the_run(stored_config(folder)), of_the_run(config))
    if different:
        shown = ", ".join(f"{key}: {theirs} there, {ours} now" for key, (theirs, ours) in list(different.items())[:3])
        raise ConfigError(
            f"output_dir={folder} holds a run of another config ({shown}); choose another folder",
            code="folder-holds-other-run",
            folder=str(folder),
            keys=tuple(different),
        )
    return True


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of a run with the most steps, incomplete ones passed over; None where there is none."""
    found: list[tuple[int, int, bool, Path]] = []
    for file in sorted((folder / CHECKPOINTS_FOLDER).glob("*.ckpt")):
        if file.is_symlink():
            continue
        try:
            step, epoch = read_position(file)
        except UserError as error:
            log.warning("passed over: %s", error)
            continue
        # Of one step, last.ckpt was written last.
        found.append((step, epoch, file.stem == "last", file))
    return max(found)[-1] if found else None
