"""Keep the checkpoints with the best validation scores."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from ret_lightning.errors import ConfigError
from ret_lightning.runtime.atomic_files import temporary_name
from ret_lightning.training.checkpointing.checkpoint_io import rename_checkpoint
from ret_lightning.training.checkpointing.selection import MODES, SCORES, Candidate, find_candidates, rank_candidates

LINK = "best.ckpt"


class BestCheckpoint(ModelCheckpoint):
    """Variant of Lightning's ModelCheckpoint that keeps its state in the checkpoint files.

    Each checkpoint file contains its scores, and the callback reads them from the folder when training starts. A folder
    can therefore be moved or copied, and a resumed run can monitor another metric. `best.ckpt` and `best.safetensors`
    are links to the best file, as determined by `ret_lightning.training.checkpointing.selection`.

    Args:
        dirpath: folder of the checkpoints.
        filename: file name without suffix; may contain `{step}`, `{epoch}` and metrics, for example
            `epoch_{epoch:03d}`. `_step_{step:08d}` is appended where several files would have the same name.
        monitor: name of the metric, as logged.
        mode: `max` or `min`: whether larger or smaller values are better.
        save_top_k: number of checkpoints to keep; -1 keeps all, 0 none.
        every_n_epochs: minimum number of epochs between two checkpoints; None means 1.
        every_n_train_steps: number of optimizer steps between two checkpoints, in place of `every_n_epochs`.
        save_on_train_epoch_end: whether to save at the end of the training epoch; None saves after validation if there
            is one.
        save_last: must be False; the callback `last` writes `last.ckpt`.
        enable_version_counter: must be False; a repeated step replaces its file.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        dirpath: str,
        filename: str = "best",
        monitor: str = "val/mean/recall@5",
        mode: str = "max",
        save_top_k: int = 1,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        save_last: bool = False,
        enable_version_counter: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(
                f"callbacks.checkpoint.mode: expected max or min, got {mode}",
                code="best-checkpoint-mode",
                found=mode,
                allowed=MODES,
            )
        if save_top_k < -1:
            raise ConfigError(
                f"callbacks.checkpoint.save_top_k: expected 0 or more, or -1 to keep all, got {save_top_k}",
                code="best-checkpoint-top-k",
                found=save_top_k,
            )
        if save_last or enable_version_counter:
            raise ConfigError(
                "callbacks.checkpoint: save_last and enable_version_counter must be false; callbacks.last writes last.ckpt",
                code="best-checkpoint-unsupported",
            )
        if not filename or "/" in filename or filename in ("last", "frozen"):
            raise ConfigError(
                f"callbacks.checkpoint.filename: expected a name without suffix, other than last and frozen, got {filename!r}",
                code="best-checkpoint-filename",
                found=filename,
            )
        numbered = "{step" in filename or ("{epoch" in filename and every_n_train_steps is None)
        if save_top_k not in (0, 1) and not numbered:
            filename += "_step_{step:08d}"
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=save_on_train_epoch_end,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self._saving = False

    @property
    def folder(self) -> Path:
        """Folder of the checkpoints."""
        return Path(self.dirpath)

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: the state is in the checkpoint files."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the state, including one of Lightning's ModelCheckpoint."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the state from the checkpoint files.

        Removes checkpoints beyond `save_top_k`, which remain after a kill or when `save_top_k` is reduced.
        """
        super().on_train_start(trainer, pl_module)
        found = self._find_candidates() if trainer.is_global_zero else []
        kept = found if self.save_top_k == -1 else found[: self.save_top_k]
        for candidate in found[len(kept) :]:
            if self._should_remove_checkpoint(trainer, str(candidate.file), ""):
                trainer.strategy.remove_checkpoint(candidate.file)
        models = {str(candidate.file): candidate.scores[self.monitor] for candidate in kept}
        models = trainer.strategy.broadcast(models)
        self.best_k_models = {file: torch.tensor(score, device=pl_module.device) for file, score in models.items()}
        if models:
            self.best_model_path, self.kth_best_model_path = next(iter(models)), list(models)[-1]
            self.best_model_score = self.best_k_models[self.best_model_path]
            self.kth_value = self.best_k_models[self.kth_best_model_path]
            self._update_links(trainer)

    def _find_candidates(self) -> list[Candidate]:
        """Return the scored checkpoints, best first; a file named like the link is renamed."""
        found = rank_candidates(find_candidates(self.folder), self.monitor, self.mode)
        if self.save_top_k == 1 and self.filename == LINK.removesuffix(".ckpt"):
            return found  # the file named best.ckpt is the checkpoint, not a link
        return [
            replace(
                candidate,
                file=rename_checkpoint(
                    candidate.file, f"best_step_{candidate.step:08d}.ckpt", {SCORES: dict(candidate.scores)}
                ),
            )
            if candidate.file.name == LINK
            else candidate
            for candidate in found
        ]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the scores to a checkpoint that this callback saves."""
        if self._saving:
            checkpoint[SCORES] = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def format_checkpoint_name(
        self,
        metrics: dict[str, Tensor],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """Return the path of a checkpoint.

        The step is appended if another checkpoint has the same name, as after the second validation of an epoch.

        Args:
            metrics: metric name to value, with `step` and `epoch`.
            filename: see `ModelCheckpoint.format_checkpoint_name`.
            ver: see `ModelCheckpoint.format_checkpoint_name`.
            prefix: see `ModelCheckpoint.format_checkpoint_name`.
        """
        file = super().format_checkpoint_name(metrics, filename, ver, prefix)
        taken = file in self.best_k_models and self.save_top_k != 1
        return f"{file.removesuffix('.ckpt')}_step_{int(metrics['step']):08d}.ckpt" if taken else file

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        # Before the first validation the metric cannot exist yet, and Lightning would raise an error.
        if self.monitor in monitor_candidates or trainer.fit_loop.epoch_loop.val_loop._has_run:
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._saving = True
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            self._saving = False
        self._update_links(trainer)

    def _update_links(self, trainer: Trainer) -> None:
        """Link `best.ckpt` and `best.safetensors` to the best file, by relative links."""
        best = Path(self.best_model_path)
        if trainer.is_global_zero and best.name != LINK and best.is_file():
            for suffix in (".ckpt", ".safetensors"):
                _replace_link(self.folder / f"best{suffix}", best.with_suffix(suffix).name)


def _replace_link(link: Path, name: str) -> None:
    target = link.with_name(name)
    if not target.is_file() or (link.is_symlink() and os.readlink(link) == name):
        return
    unfinished = temporary_name(link)
    try:
        unfinished.symlink_to(name)
    except OSError:  # the file system does not support links
        shutil.copyfile(target, unfinished)
    unfinished.replace(link)
