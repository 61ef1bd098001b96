"""How a run takes its folder: a new one at once, a resumed one when its first new checkpoint is written.

Until then a resumed run may fail, be refused or be interrupted, and the folder holds what it held: the finished result of the
run that was to be extended, or the unfinished one. Then `config.yaml` is replaced, and the results of before get names that no
reader takes for those of a finished run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ret_lightning._version import __version__
from ret_lightning.errors import ConfigError
from ret_lightning.runs.code_version import code_version
from ret_lightning.runtime.atomic_files import write_text
from ret_lightning.runtime.lock import is_first_rank
from ret_lightning.runtime.run_layout import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    FAILURE_FILE,
    INTERVALS_FILE,
    METRICS_FILE,
    ORIGIN_FILE,
    RANKINGS_FOLDER,
    previous_path,
    read_json,
    write_json,
)

_NEXT_CONFIG_FILE = "config.next.yaml"


def refuse_taken(folder: Path) -> None:
    """Raise an error if a new run may not have a folder; nothing is written.

    Raises:
        ConfigError: if it holds a run, finished or not.
    """
    if (folder / METRICS_FILE).exists():
        raise ConfigError(
            f"output_dir={folder}: holds a finished run ({METRICS_FILE}); choose another folder, or remove this one",
            code="folder-holds-finished-run",
            folder=str(folder),
        )
    if has_checkpoint(folder):
        raise ConfigError(
            f"output_dir={folder}: holds an unfinished run; resume={folder} continues it, or choose another folder",
            code="folder-holds-unfinished-run",
            folder=str(folder),
        )


def refuse_evaluated(folder: Path) -> None:
    """Raise an error if an evaluation may not have a folder; nothing is written.

    Raises:
        ConfigError: if it holds finished metrics or a training run.
    """
    if (folder / CHECKPOINTS_FOLDER).exists():
        raise ConfigError(
            f"output_dir={folder}: is the folder of a training run; choose another one",
            code="folder-holds-training-run",
            folder=str(folder),
        )
    if (folder / METRICS_FILE).exists():
        raise ConfigError(
            f"output_dir={folder}: holds finished metrics ({METRICS_FILE}); choose another folder, or remove this one",
            code="folder-holds-metrics",
            folder=str(folder),
        )


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder holds work that a new run would overwrite."""
    return any((folder / CHECKPOINTS_FOLDER).glob("*.ckpt"))


class Takeover:
    """Takes a run folder; on ranks other than the first it does nothing.

    Args:
        folder: the run's.
        config: the run's, resolved when it is written.
        resume: whether the folder's run is resumed.

    Attributes:
        config_file: where the config is stored until `commit`, for the ranks that are started from it.
        on_commit: called at `commit`.
        on_abandon: called at `abandon`, unless `commit` was before.
    """

    def __init__(self, folder: Path, config: DictConfig, resume: bool) -> None:
        self.folder = folder
        self.config_file = folder / (_NEXT_CONFIG_FILE if resume else CONFIG_FILE)
        self.on_commit: list[Callable[[], None]] = []
        self.on_abandon: list[Callable[[], None]] = []
        self._resume = resume
        self._committed = not is_first_rank()
        if not self._committed:
            write_text(self.config_file, OmegaConf.to_yaml(config, resolve=True))
        if not resume:
            self.commit()

    def commit(self) -> None:
        """Make the folder this run's; again does nothing."""
        if self._committed:
            return
        self._committed = True
        if self._resume:
            os.replace(self.config_file, self.folder / CONFIG_FILE)
        if (self.folder / METRICS_FILE).exists():
            for name in (METRICS_FILE, INTERVALS_FILE, RANKINGS_FOLDER):
                _set_aside(self.folder / name)
        (self.folder / FAILURE_FILE).unlink(missing_ok=True)
        write_json(self.folder / ORIGIN_FILE, _origin(self.folder if self._resume else None))
        for call in self.on_commit:
            call()

    def abandon(self) -> None:
        """Remove what was prepared; after `commit` nothing."""
        if not self._committed:
            self.config_file.unlink(missing_ok=True)
            for call in self.on_abandon:
                call()


def _set_aside(path: Path) -> None:
    if not path.exists():
        return
    aside = previous_path(path)
    if aside.is_dir():
        shutil.rmtree(aside)
    os.replace(path, aside)


def _origin(resumed: Path | None) -> dict[str, Any]:
    """The versions that make the run; of a resumed one also those that made it before."""
    earlier = read_json(resumed / ORIGIN_FILE).get("code", []) if resumed else []
    code = code_version()
    return {"version": __version__, "code": earlier if code is None or code in earlier else [*earlier, code]}
