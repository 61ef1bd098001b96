"""Keeps the checkpoints that score best on validation."""

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
from ret_lightning.training.checkpointing.selection import MODES, SCORES, Candidate, candidates, ranked

LINK = "best.ckpt"


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint with its memory in the files that it keeps, instead of absolute paths in a checkpoint.

    Each file carries its scores. What is kept is found out from the files themselves when training starts, so a folder may
    be moved or copied, and a resumed run may monitor another metric. Which one is the best is for
    `ret_lightning.training.checkpointing.selection` to say; `best.ckpt` and `best.safetensors` always refer to it.

    Args:
        dirpath: the folder of the checkpoints.
        filename: without suffix; may contain `{step}`, `{epoch}` and metrics, as `epoch_{epoch:03d}`. `_step_{step:08d}` is
            appended where several files would otherwise have one name.
        monitor: the metric, as logged.
        mode: `max` or `min`: which values are better.
        save_top_k: how many of the best to keep; -1: all, 0: none.
        every_n_epochs: epochs between two that may be saved; None: 1.
        every_n_train_steps: the same in optimiser steps, instead.
        save_on_train_epoch_end: see ModelCheckpoint; None: after validation, where there is one.
        save_last: must be false; the callback `last` keeps `last.ckpt`.
        enable_version_counter: must be false; a replayed step replaces its file.

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
                f"callbacks.checkpoint.mode={mode} must be max or min",
                code="best-checkpoint-mode",
                found=mode,
                allowed=MODES,
            )
        if save_top_k < -1:
            raise ConfigError(
                f"callbacks.checkpoint.save_top_k={save_top_k} must be at least 0, or -1 for all",
                code="best-checkpoint-top-k",
                found=save_top_k,
            )
        if save_last or enable_version_counter:
            raise ConfigError(
                "callbacks.checkpoint: save_last and enable_version_counter must be false; the callback `last` keeps last.ckpt",
                code="best-checkpoint-unsupported",
            )
        if not filename or "/" in filename or filename in ("last", "frozen"):
            raise ConfigError(
                f"callbacks.checkpoint.filename={filename!r} must be a file name without suffix, other than last and frozen",
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
        """The folder of the checkpoints."""
        return Path(self.dirpath)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the files are the state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing, also from a checkpoint of ModelCheckpoint."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up what the folder holds; more than `save_top_k` files are left by a kill or a smaller setting, and removed."""
        super().on_train_start(trainer, pl_module)
        found = self._found() if trainer.is_global_zero else []
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
            self._refer(trainer)

    def _found(self) -> list[Candidate]:
        """The scored checkpoints, best first; one that has the name of the link gets a name of its own."""
        found = ranked(candidates(self.folder), self.monitor, self.mode)
        if self.save_top_k == 1 and self.filename == LINK.removesuffix(".ckpt"):
            return found  # this is the one
        return [
            replace(
                each, file=rename_checkpoint(each.file, f"best_step_{each.step:08d}.ckpt", {SCORES: dict(each.scores)})
            )
            if each.file.name == LINK
            else each
            for each in found
        ]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the scores to a checkpoint of this callback's."""
        if self._saving:
            checkpoint[SCORES] = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def format_checkpoint_name(
        self,
        metrics: dict[str, Tensor],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """The file of a checkpoint; the step is appended where another one has the name, as in an epoch's second validation."""
        file = super().format_checkpoint_name(metrics, filename, ver, prefix)
        taken = file in self.best_k_models and self.save_top_k != 1
        return f"{file.removesuffix('.ckpt')}_step_{int(metrics['step']):08d}.ckpt" if taken else file

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        # Lightning's warning of a missing metric refers to code; before the first validation there is none to miss.
        if self.monitor in monitor_candidates or trainer.fit_loop.epoch_loop.val_loop._has_run:
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._saving = True
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            self._saving = False
        self._refer(trainer)

    def _refer(self, trainer: Trainer) -> None:
        """Have `best.ckpt` and `best.safetensors` refer to the best file, by relative links."""
        best = Path(self.best_model_path)
        if trainer.is_global_zero and best.name != LINK and best.is_file():
            for suffix in (".ckpt", ".safetensors"):
                _link(self.folder / f"best{suffix}", best.with_suffix(suffix).name)


def _link(link: Path, name: str) -> None:
    target = link.with_name(name)
    if not target.is_file() or (link.is_symlink() and os.readlink(link) == name):
        return
    unfinished = temporary_name(link)
    try:
        unfinished.symlink_to(name)
    except OSError:  # a file system without links
        shutil.copyfile(target, unfinished)
    os.replace(unfinished, link)
