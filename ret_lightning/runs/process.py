"""Process-level handling of a run: logging, cleanup, and errors."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from lightning import Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ret_lightning.distributed.ddp import SameConfigDDP
from ret_lightning.errors import Stopped, UserError, one_line, original_error
from ret_lightning.runs.resume.takeover import has_checkpoint
from ret_lightning.runtime.atomic_files import disk_full, disk_is_full
from ret_lightning.runtime.run_layout import FAILURE_FILE, METRICS_FILE, write_json

log = logging.getLogger(__name__)


def is_first_process() -> bool:
    """Return whether Lightning regards this process as rank 0: by its global rank once a strategy has set it.

    Before that it is the same as `runtime.lock.is_first_rank`, which does not import torch.
    """
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]  # an attribute that Lightning sets on the function


def filter_library_output() -> None:
    """Suppress duplicate log lines of Lightning, advertisements, and warnings that do not apply to these runs."""
    if not is_first_process():
        logging.getLogger("ret_lightning").setLevel(logging.ERROR)  # the first rank logs for all
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True  # False if Lightning was imported before logging was configured
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    # Lightning's own use of a renamed class of torch, not under the control of users.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    # Checkpoints of the resumed run itself; folders of other runs are refused.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # loggers.py restores the CSV rows of a resumed run.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    # data/datamodule.py moves the data loaders to the position of the checkpoint.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    # Small or already encoded evaluation files can leave ranks without rows.
    warnings.filterwarnings("ignore", message="Total length of `DataLoader` across ranks is zero")
    # data.num_workers may be larger than the number of cores.
    warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes in total")
    # ret-train may also run on a login node, where srun is available.
    warnings.filterwarnings("ignore", message="The `srun` command is available on your system")
    # Frozen backbones stay in eval mode.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")


@contextmanager
def closing_run(trainer: Trainer, loggers: list[Logger]) -> Iterator[None]:
    """Clean up after a run: end the other ranks, close W&B, and destroy the process group, also on an exception."""
    ranks = trainer.strategy if isinstance(trainer.strategy, SameConfigDDP) else None
    failed = True
    try:
        yield
        failed = trainer.interrupted
    except Exception as raised:
        error = original_error(raised)
        if isinstance(error, RuntimeError) and ranks and ranks.other_rank_failed():
            raise UserError(
                "another rank failed; its error message is printed above", code="another-rank-failed"
            ) from error
        if error is raised:
            raise
        raise error from error.__cause__
    finally:
        if ranks and failed:
            # Before the process group is destroyed, which would make the ranks print tracebacks.
            ranks.stop_ranks(failed=True)
        _close(loggers)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if ranks and not failed:
            ranks.stop_ranks(failed=False)


@contextmanager
def record_failure(folder: Path) -> Iterator[None]:
    """Record the error of a failed run in its folder for reports, unless the folder contains a finished run."""
    try:
        yield
    except Exception as error:
        if is_first_process() and not (folder / METRICS_FILE).exists():
            line = str(error) if isinstance(error, UserError) else one_line(error)
            with suppress(OSError):  # the disk may be full
                write_json(folder / FAILURE_FILE, {"error": line, "stopped": isinstance(error, Stopped)})
        raise


def is_killed_worker(error: BaseException) -> bool:
    """Return whether an exception of a DataLoader means that one of its worker processes was killed."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


@contextmanager
def add_resume_hint(folder: Path) -> Iterator[None]:
    """Add to an error how to resume the run, and convert a full disk and a killed loader worker to a UserError."""
    try:
        yield
    except UserError:
        if is_first_process() and has_checkpoint(folder):
            log.info("to resume from the last checkpoint: ret-train resume=%s", folder)
        raise
    except Exception as error:
        if disk_is_full(error, folder):
            path = getattr(error, "filename", None) or folder
            hint = f"; to resume from the last checkpoint: ret-train resume={folder}" if has_checkpoint(folder) else ""
            raise disk_full(Path(path), hint) from error
        if not is_killed_worker(error):
            raise
        raise UserError(
            f"{str(error).splitlines()[0]}; a killed worker usually means out of memory; reduce data.num_workers or "
            f"data.batch_size; to resume from the last checkpoint: ret-train resume={folder}",
            code="loader-worker-killed",
            folder=str(folder),
        ) from error


@contextmanager
def wandb_files_in(folder: Path) -> Iterator[None]:
    """Let W&B store the images of its tables in a folder until upload, unless WANDB_DATA_DIR is set."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def _close(loggers: list[Logger]) -> None:
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            # W&B has one run per process; without finish(), the next job of a sweep would log to this run.
            import wandb

            wandb.finish()
