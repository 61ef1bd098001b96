"""Takeover of a run folder: at once for a new run, at the first new checkpoint for a resumed run.

Until then, a resumed run may fail or be interrupted without any change to the results in the folder. At the takeover,
`config.yaml` is replaced, and the earlier results are renamed so that no reader takes them for those of a finished run.
"""

from __future__ import annotations

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
    """Check that a folder can be used by a new run. Nothing is written.

    Raises:
        ConfigError: if the folder contains a finished or unfinished run.
    """
    if (folder / METRICS_FILE).exists():
        raise ConfigError(
            f"output_dir={folder}: contains a finished run ({METRICS_FILE}); choose another folder or remove this one",
            code="folder-holds-finished-run",
            folder=str(folder),
        )
    if has_checkpoint(folder):
        raise ConfigError(
            f"output_dir={folder}: contains an unfinished run; resume it with resume={folder} or choose another folder",
            code="folder-holds-unfinished-run",
            folder=str(folder),
        )


def refuse_evaluated(folder: Path) -> None:
    """Check that a folder can be used by an evaluation. Nothing is written.

    Raises:
        ConfigError: if the folder contains a finished evaluation or a training run.
    """
    if (folder / CHECKPOINTS_FOLDER).exists():
        raise ConfigError(
            f"output_dir={folder}: contains a training run; choose another folder",
            code="folder-holds-training-run",
            folder=str(folder),
        )
    if (folder / METRICS_FILE).exists():
        raise ConfigError(
            f"output_dir={folder}: contains a finished evaluation ({METRICS_FILE}); choose another folder or remove this one",
            code="folder-holds-metrics",
            folder=str(folder),
        )


def has_checkpoint(folder: Path) -> bool:
    """Return whether a run folder contains a checkpoint."""
    return any((folder / CHECKPOINTS_FOLDER).glob("*.ckpt"))


class Takeover:
    """Takes over a run folder. Only the first rank writes.

    Args:
        folder: run folder.
        config: config of the run; it is resolved when it is written.
        resume: whether the run of the folder is resumed.

    Attributes:
        config_file: file of the config, read by the other ranks.
        on_commit: functions that `commit` calls.
        on_abandon: functions that `abandon` calls if `commit` was not called.
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
        """Take over the folder. Further calls do nothing."""
        if self._committed:
            return
        self._committed = True
        if self._resume:
            self.config_file.replace(self.folder / CONFIG_FILE)
        if (self.folder / METRICS_FILE).exists():
            for name in (METRICS_FILE, INTERVALS_FILE, RANKINGS_FOLDER):
                _rename_to_previous(self.folder / name)
        (self.folder / FAILURE_FILE).unlink(missing_ok=True)
        write_json(self.folder / ORIGIN_FILE, _origin(self.folder if self._resume else None))
        for call in self.on_commit:
            call()

    def abandon(self) -> None:
        """Undo the preparation. After `commit`, do nothing."""
        if not self._committed:
            self.config_file.unlink(missing_ok=True)
            for call in self.on_abandon:
                call()


def _rename_to_previous(path: Path) -> None:
    if not path.exists():
        return
    aside = previous_path(path)
    if aside.is_dir():
        shutil.rmtree(aside)
    path.replace(aside)


def _origin(resumed: Path | None) -> dict[str, Any]:
    """Return the version of the package and the code versions of a run, including those before a resume."""
    earlier = read_json(resumed / ORIGIN_FILE).get("code", []) if resumed else []
    code = code_version()
    return {"version": __version__, "code": earlier if code is None or code in earlier else [*earlier, code]}
