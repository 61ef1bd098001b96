"""Select the best checkpoint of a run folder.

Testing, ret-evaluate, ret-export, ret-index, `origin.json`, Optuna's objective and resuming all call
`find_best_checkpoint`. The result depends only on the files in the folder and on the metric that the run's config
names, so it does not change when the folder is moved or renamed.
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
from ret_lightning.training.checkpointing.checkpoint_io import open_checkpoint, read_step

log = logging.getLogger(__name__)

SCORES = "scores"  # key of a checkpoint of BestCheckpoint: metric to value, of the weights in the checkpoint
MODES = ("max", "min")
LAST_CHECKPOINT = "last.ckpt"


@dataclass(frozen=True)
class Candidate:
    """A checkpoint with scores of its own weights.

    Attributes:
        file: the checkpoint.
        step: number of optimizer steps before the checkpoint.
        scores: metric to value.
    """

    file: Path
    step: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class SelectedCheckpoint:
    """The checkpoint of a run to use.

    Attributes:
        file: the checkpoint.
        step: number of optimizer steps before the checkpoint.
        reason: why it was selected, for logs.
        is_best: whether it is the best by the run's metric; otherwise it is the last one, since none was scored.
    """

    file: Path
    step: int
    reason: str
    is_best: bool

    def __str__(self) -> str:
        return f"{self.file}, step {self.step} ({self.reason})"


def find_candidates(folder: Path) -> list[Candidate]:
    """Find the scored checkpoints in a folder, in the order of their steps; incomplete files are skipped.

    A checkpoint that Lightning's own ModelCheckpoint wrote is included if it was the best when it was written.

    Args:
        folder: a folder of checkpoints.
    """
    return sorted(_read_candidates(folder), key=lambda candidate: (candidate.step, candidate.file.name))


def rank_candidates(found: Sequence[Candidate], monitor: str, mode: str) -> list[Candidate]:
    """Sort the checkpoints that were scored by a metric, best first; ties are won by the earlier step.

    Args:
        found: candidates in the order of their steps.
        monitor: the metric; candidates without it, or with NaN, are left out.
        mode: `max` or `min`: whether larger or smaller values are better.
    """
    scored = [each for each in found if monitor in each.scores and each.scores[monitor] == each.scores[monitor]]
    return sorted(scored, key=lambda each: each.scores[monitor], reverse=mode == "max")


def find_best_checkpoint(run: Path) -> tuple[Candidate, str] | None:
    """Find the best checkpoint of a run folder.

    Args:
        run: the run folder.

    Returns:
        The checkpoint and the metric that decided, or None if no checkpoint was scored.
    """
    monitor, mode = read_monitor(run)
    if monitor is None:
        return None
    found = rank_candidates(find_candidates(run / CHECKPOINTS_FOLDER), monitor, mode)
    return (found[0], monitor) if found else None


def select_checkpoint(run: Path) -> SelectedCheckpoint | None:
    """Select the checkpoint of a run folder to use: the best one, or the last one if none was scored.

    Args:
        run: the run folder.

    Returns:
        The selected checkpoint, or None if the folder contains none.

    Raises:
        UserError: if the folder contains checkpoints, but no complete one.
    """
    best = find_best_checkpoint(run)
    if best is not None:
        candidate, monitor = best
        reason = f"best by {monitor}: {candidate.scores[monitor]:.4f}"
        return SelectedCheckpoint(candidate.file, candidate.step, reason, is_best=True)
    last = run / CHECKPOINTS_FOLDER / LAST_CHECKPOINT
    if not last.is_file():
        return None
    return SelectedCheckpoint(last, read_step(last), "last checkpoint: no checkpoint was scored", is_best=False)


def read_monitor(run: Path) -> tuple[str | None, str]:
    """Read the metric by which a run selects checkpoints from its config.

    Args:
        run: the run folder.

    Returns:
        The metric and `max` or `min`; (None, "max") if the run selects none.
    """
    file = run / CONFIG_FILE
    config = OmegaConf.load(file) if file.is_file() else OmegaConf.create()
    chosen = OmegaConf.select(config, "callbacks.checkpoint")
    if chosen is None:
        return None, "max"
    monitor = chosen.get("monitor")
    return monitor and current_metric(monitor), chosen.get("mode") or "max"


def _read_candidates(folder: Path) -> Iterator[Candidate]:
    for file in folder.glob("*.ckpt"):
        if file.is_symlink():  # best.ckpt links to another checkpoint
            continue
        try:
            checkpoint = open_checkpoint(file)
        except UserError as error:
            log.warning("skipped: %s", error)
            continue
        scores = checkpoint.get(SCORES) or _lightning_scores(file, checkpoint)
        if scores:
            scores = {current_metric(name): score for name, score in scores.items()}
            yield Candidate(file, checkpoint["global_step"], scores)


def _lightning_scores(file: Path, checkpoint: dict[str, Any]) -> dict[str, float]:
    """Return the scores of a checkpoint of Lightning's ModelCheckpoint, if it was the best when it was written."""
    for state in checkpoint.get("callbacks", {}).values():
        # Only the name is compared: the folder may have been moved since.
        if isinstance(state, dict) and Path(str(state.get("best_model_path") or "")).name == file.name:
            record = checkpoint.get("ret_lightning", {})
            score = {} if state["best_model_score"] is None else {state["monitor"]: float(state["best_model_score"])}
            return score | record.get("validation", {})
    return {}
