"""What surrounds the course of a run in its process: what it says, what it leaves behind, and how it goes wrong."""

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


def quieten() -> None:
    """Lightning has handlers of its own, so with Hydra's it says everything twice; and some of it is advertising."""
    if rank_zero_only.rank != 0:
        logging.getLogger("ret_lightning").setLevel(logging.ERROR)  # the first process says it all
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True  # off where Lightning was imported before logging was configured
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    # Lightning's own use of a renamed class of torch; nothing that a user could mend.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    # A resumed run's own checkpoints; another run's folder is refused.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # What a resumed run's CSV file held is put back, see loggers.py.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    # The loaders are taken to where the run was, see data/datamodule.py.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    # Of small evaluation files not every rank has a share, and of those that are encoded already nobody has.
    warnings.filterwarnings("ignore", message="Total length of `DataLoader` across ranks is zero")
    # data.num_workers is a setting; whoever asks for more processes than cores means it, or has the default.
    warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes in total")
    # A login node has srun, and ret-train runs there too, in an interactive job or to submit others.
    warnings.filterwarnings("ignore", message="The `srun` command is available on your system")
    # Frozen backbones stay in eval mode on purpose.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")


@contextmanager
def ended(trainer: Trainer, loggers: list[Logger]) -> Iterator[None]:
    """Leaves the process as it was: other ranks ended, W&B's run closed, no process group; also where the block raises."""
    ranks = trainer.strategy if isinstance(trainer.strategy, SameConfigDDP) else None
    failed = True
    try:
        yield
        failed = trainer.interrupted
    except Exception as raised:
        error = original_error(raised)
        if isinstance(error, RuntimeError) and ranks and ranks.other_rank_failed():
            raise UserError(
                "another rank failed, so this one did; its message is above", code="another-rank-failed"
            ) from error
        if error is raised:
            raise
        raise error from error.__cause__
    finally:
        if ranks and failed:
            ranks.stop_ranks(failed=True)  # before the connection goes, which they would tell of at length
        _close(loggers)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if ranks and not failed:
            ranks.stop_ranks(failed=False)


@contextmanager
def failure_noted(folder: Path) -> Iterator[None]:
    """Leave in the folder why the run ended, for reports; not in one that still holds a finished result."""
    try:
        yield
    except Exception as error:
        if rank_zero_only.rank == 0 and not (folder / METRICS_FILE).exists():
            line = str(error) if isinstance(error, UserError) else one_line(error)
            with suppress(OSError):  # the disk may be what failed
                write_json(folder / FAILURE_FILE, {"error": line, "stopped": isinstance(error, Stopped)})
        raise


@contextmanager
def continuable(folder: Path) -> Iterator[None]:
    """Add to an error how the run can be resumed; report a full disk and a killed loader worker in plain words."""
    try:
        yield
    except UserError:
        if rank_zero_only.rank == 0 and has_checkpoint(folder):
            log.info("to resume from the last checkpoint: ret-train resume=%s", folder)
        raise
    except Exception as error:
        if disk_is_full(error, folder):
            place = getattr(error, "filename", None) or folder
            hint = (
                f"; ret-train resume={folder} then continues from the last checkpoint" if has_checkpoint(folder) else ""
            )
            raise disk_full(Path(place), hint) from error
        if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"{str(error).splitlines()[0]}; a worker that is killed mostly means that memory ran out: fewer data.num_workers "
            f"or a smaller data.batch_size need less; ret-train resume={folder} continues from the last checkpoint",
            code="loader-worker-killed",
            folder=str(folder),
        ) from error


@contextmanager
def wandb_files_in(folder: Path) -> Iterator[None]:
    """Where W&B keeps the pictures of its tables until they are sent; its own choice is a folder outside the run's."""
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
            # W&B keeps one run a process: the next job of a sweep would go on writing into this one.
            import wandb

            wandb.finish()
