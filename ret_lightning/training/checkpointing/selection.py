"""Which checkpoint of a run folder is the best: the one owner of that decision.

Testing, ret-evaluate, ret-export, ret-index, `origin.json`, Optuna's objective and resuming all ask `best_checkpoint`. It looks
at nothing but the files in the folder and at the metric that the run's config names, so the answer does not depend on where
the folder is, on what it was called before, or on which process asks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ret_lightning.config.targets.renamed_keys import current_metric
from ret_lightning.errors import UserError
from ret_lightning.runtime.run_layout import CHECKPOINTS_FOLDER, CONFIG_FILE
from ret_lightning.training.checkpointing.checkpoint_io import stored_checkpoint

log = logging.getLogger(__name__)

SCORES = "scores"  # the key in a checkpoint that BestCheckpoint wrote: metric to value, of these very weights
MODES = ("max", "min")
LAST_CHECKPOINT = "last.ckpt"


@dataclass(frozen=True)
class Candidate:
    """A checkpoint whose own weights were scored.

    Attributes:
        file: the checkpoint.
        step: optimiser steps until it was written.
        scores: metric to value.
    """

    file: Path
    step: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Selected:
    """The checkpoint of a run to use.

    Attributes:
        file: the checkpoint.
        step: optimiser steps until it was written.
        reason: why it was selected, for logs.
        is_best: whether it is the best by the run's metric; otherwise it is the last one, since none was scored.
    """

    file: Path
    step: int
    reason: str
    is_best: bool

    def __str__(self) -> str:
        return f"{self.file}, step {self.step} ({self.reason})"


def candidates(folder: Path) -> list[Candidate]:
    """The scored checkpoints in a folder of checkpoints, by step; incomplete files are passed over.

    A checkpoint that Lightning's own ModelCheckpoint wrote counts if it was the best when it was written.
    """
    return sorted(_scored(folder), key=lambda candidate: (candidate.step, candidate.file.name))


def ranked(found: Sequence[Candidate], monitor: str, mode: str) -> list[Candidate]:
    """Those that were scored by a metric, best first; of equal ones the earliest."""
    scored = [each for each in found if monitor in each.scores and each.scores[monitor] == each.scores[monitor]]
    return sorted(scored, key=lambda each: each.scores[monitor], reverse=mode == "max")


def best_checkpoint(run: Path) -> tuple[Candidate, str] | None:
    """The best checkpoint of a run folder, and the metric that it is the best by; None where none was scored."""
    monitor, mode = monitored(run)
    found = ranked(candidates(run / CHECKPOINTS_FOLDER), monitor, mode) if monitor is not None else []
    return (found[0], monitor) if found else None


def selected_checkpoint(run: Path) -> Selected | None:
    """The checkpoint of a run folder to use: the best, or the last one where none was scored; None without either.

    Raises:
        UserError: if there are checkpoints, but no complete one.
    """
    best = best_checkpoint(run)
    if best is not None:
        candidate, monitor = best
        reason = f"best by {monitor}: {candidate.scores[monitor]:.4f}"
        return Selected(candidate.file, candidate.step, reason, is_best=True)
    last = run / CHECKPOINTS_FOLDER / LAST_CHECKPOINT
    if not last.is_file():
        return None
    return Selected(
        last, stored_checkpoint(last)["global_step"], "the last one: no checkpoint was scored", is_best=False
    )


def monitored(run: Path) -> tuple[str | None, str]:
    """The metric that a run's config chooses checkpoints by, and `max` or `min`; (None, "max") where it chooses none."""
    file = run / CONFIG_FILE
    config = OmegaConf.load(file) if file.is_file() else OmegaConf.create()
    chosen = OmegaConf.select(config, "callbacks.checkpoint")
    if chosen is None:
        return None, "max"
    monitor = chosen.get("monitor")
    return monitor and current_metric(monitor), chosen.get("mode") or "max"


def _scored(folder: Path) -> Iterator[Candidate]:
    for file in folder.glob("*.ckpt"):
        if file.is_symlink():  # best.ckpt, which refers to another one
            continue
        try:
            checkpoint = stored_checkpoint(file)
        except UserError as error:
            log.warning("passed over: %s", error)
            continue
        scores = checkpoint.get(SCORES) or _lightning_scores(file, checkpoint)
        if scores:
            scores = {current_metric(name): score for name, score in scores.items()}
            yield Candidate(file, checkpoint["global_step"], scores)


def _lightning_scores(file: Path, checkpoint: dict[str, Any]) -> dict[str, float]:
    """The scores of a checkpoint that Lightning's ModelCheckpoint wrote, if it was the best one at that time."""
    for state in checkpoint.get("callbacks", {}).values():
        # The path is of where the folder was then, and decides nothing.
        if isinstance(state, dict) and Path(str(state.get("best_model_path") or "")).name == file.name:
            record = checkpoint.get("ret_lightning", {})
            score = {} if state["best_model_score"] is None else {state["monitor"]: float(state["best_model_score"])}
            return score | record.get("validation", {})
    return {}
