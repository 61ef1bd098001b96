"""Detection of an interrupted run: whether a folder contains the same run, and its last complete checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.runs.identity import differences, run_identity
from ret_lightning.runs.resume.resumed_config import stored_config
from ret_lightning.runtime.run_layout import CHECKPOINTS_FOLDER, CONFIG_FILE
from ret_lightning.training.checkpointing.checkpoint_io import read_position

log = logging.getLogger(__name__)


def holds_same_run(folder: Path, config: DictConfig) -> bool:
    """Return whether a folder contains a run of this config.

    Args:
        folder: run folder; may be missing.
        config: resolved config of the requested run.

    Raises:
        ConfigError: if the folder contains a run of another config.
    """
    if not (folder / CONFIG_FILE).is_file():
        return False
    different = differences(run_identity(stored_config(folder)), run_identity(config))
    if different:
        examples = ", ".join(f"{key}: {stored} stored, {now} now" for key, (stored, now) in list(different.items())[:3])
        raise ConfigError(
            f"output_dir={folder}: contains a run of another config ({examples}); choose another folder",
            code="folder-holds-other-run",
            folder=str(folder),
            keys=tuple(different),
        )
    return True


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the complete checkpoint of a run with the most steps; None if there is none."""
    found: list[tuple[int, int, bool, Path]] = []
    for file in sorted((folder / CHECKPOINTS_FOLDER).glob("*.ckpt")):
        if file.is_symlink():
            continue
        try:
            step, epoch = read_position(file)
        except UserError as error:
            log.warning("skipped: %s", error)
            continue
        # Of checkpoints of the same step, last.ckpt was written last.
        found.append((step, epoch, file.stem == "last", file))
    return max(found)[-1] if found else None
