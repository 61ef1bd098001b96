"""The course of a training run, from a checked config to `metrics.json`."""

from __future__ import annotations

import errno
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from ret_lightning import __version__
from ret_lightning.atomic import write_text
from ret_lightning.config.build import build
from ret_lightning.errors import ConfigError, Stopped, UserError
from ret_lightning.models import RetRetriever
from ret_lightning.models.checkpoint import load_weights
from ret_lightning.models.compiled import compile_blocks
from ret_lightning.training.checkpoint_files import RunCheckpointIO
from ret_lightning.training.code_version import code_version
from ret_lightning.training.cost import Cost
from ret_lightning.training.evaluation import RetrievalEvaluation
from ret_lightning.training.folder import (
    CONFIG_FILE,
    COST_FILE,
    FAILURE_FILE,
    INTERVALS_FILE,
    METRICS_FILE,
    ORIGIN_FILE,
    RANKINGS_FOLDER,
    read_json,
    write_json,
)
from ret_lightning.training.last_checkpoint import LastCheckpoint
from ret_lightning.training.loggers import build_loggers, log_tables, record_wandb_run
from ret_lightning.training.module import RetModule
from ret_lightning.training.random_states import RandomStates
from ret_lightning.training.ranks import SameConfigDDP
from ret_lightning.training.resumption import last_whole_checkpoint, remove_unfinished_files, unfinished_checkpoint
from ret_lightning.training.summary import metrics_tables, print_tables
from ret_lightning.training.trained import RecordInCheckpoint, build_untrained, checkpoint_step, open_retriever

log = logging.getLogger(__name__)


def train(config: DictConfig, resume: bool = False) -> dict[str, float]:
    """Trains, evaluates after every epoch, tests, and leaves everything in the run folder.

    Args:
        config: as ret-train composes it; `output_dir` is the run folder.
        resume: go on from the run folder's last whole checkpoint; from the beginning where there is none.

    Returns:
        The metrics of the test split, as in `metrics.json`, which is written last and whole; empty where
        `test_with=none`, and then there is no such file.

    Raises:
        UserError: on what the user can mend.
    """
    folder = Path(config.output_dir)
    _take_folder(folder, config, resume)
    with _failure_noted(folder):
        return _train(folder, config, resume)


def _train(folder: Path, config: DictConfig, resume: bool) -> dict[str, float]:
    _quieten()
    checkpoint = last_whole_checkpoint(folder) if resume else None
    step = checkpoint_step(checkpoint) if checkpoint else None
    if resume:
        log.info(
            "going on from %s", f"{checkpoint}, step {step}" if checkpoint else "the beginning: no checkpoint is there"
        )
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    data: LightningDataModule = build(config.data)
    module = RetModule(
        retriever=build_untrained(config) if checkpoint else _initial_retriever(config),
        loss=build(config.loss),
        optimizer=build(config.optimizer),
        scheduler=build(config.scheduler),
        backbone_learning_rate_scale=config.backbone_learning_rate_scale,
        on_nonfinite=config.on_nonfinite,
    )
    if config.compile:
        compile_blocks(module.retriever)
    evaluation: RetrievalEvaluation = build(config.evaluation)
    loggers = build_loggers(config, folder, step)
    cost = Cost()
    # The evaluation comes first: the other callbacks read what it found.
    callbacks = [
        evaluation,
        cost,
        RecordInCheckpoint(config),
        RandomStates(),
        *(build(n) for n in config.callbacks.values() if n is not None),
    ]
    # Last, so that what it saves tells what the other checkpoint callbacks have just done.
    callbacks.sort(key=lambda callback: isinstance(callback, LastCheckpoint))
    trainer: Trainer = build(config.trainer, logger=loggers or False, callbacks=callbacks, plugins=[RunCheckpointIO()])
    if isinstance(trainer.strategy, SameConfigDDP):
        trainer.strategy.resume = resume
    with _wandb_files_in(folder / "wandb"), _ended(trainer, loggers), _continuable(folder):
        _log_config(loggers, config)
        record_wandb_run(loggers, folder)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if trainer.interrupted or config.test_with == "none":
            log.info("not tested, so there is no %s; checkpoints are in %s", METRICS_FILE, folder)
            return {}
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") if config.test_with == "best" else ""
        missing = "" if best or config.test_with == "last" else ", since there is no best checkpoint"
        log.info("testing the weights of %s", best or f"the last step{missing}")
        trainer.test(module, datamodule=data, ckpt_path="best" if best else None, weights_only=True, verbose=False)
        step = checkpoint_step(Path(best)) if best else trainer.global_step
        return _finish(evaluation, loggers, cost, folder, step) if trainer.is_global_zero else {}


def _take_folder(folder: Path, config: DictConfig, resume: bool) -> None:
    if rank_zero_only.rank != 0:  # by the environment: no process group exists yet
        return
    if resume:
        (folder / METRICS_FILE).unlink(missing_ok=True)  # the run is unfinished again
        remove_unfinished_files(folder)
    elif (folder / METRICS_FILE).exists():
        raise ConfigError(
            f"output_dir={folder}: holds a finished run ({METRICS_FILE}); choose another folder, or remove this one"
        )
    elif unfinished_checkpoint(folder):
        raise ConfigError(
            f"output_dir={folder}: holds an unfinished run; resume={folder} continues it, or choose another folder"
        )
    write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(config, resolve=True))
    (folder / FAILURE_FILE).unlink(missing_ok=True)
    write_json(folder / ORIGIN_FILE, _origin(folder if resume else None))


def _origin(resumed: Path | None) -> dict[str, Any]:
    """What makes the run; of one that is resumed, what made it before too."""
    earlier = read_json(resumed / ORIGIN_FILE).get("code", []) if resumed else []
    code = code_version()
    return {"version": __version__, "code": earlier if code is None or code in earlier else [*earlier, code]}


@contextmanager
def _failure_noted(folder: Path) -> Iterator[None]:
    """Leaves in the folder why the run ended, for who asks later what became of it."""
    try:
        yield
    except Exception as error:
        if rank_zero_only.rank == 0:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
            line = lines[-1] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"
            with suppress(OSError):  # the disk may be what failed
                write_json(folder / FAILURE_FILE, {"error": line, "stopped": isinstance(error, Stopped)})
        raise


def _initial_retriever(config: DictConfig) -> RetRetriever:
    if config.init_from is None:
        return build(config.model)
    retriever = build_untrained(config)  # no backbone is fetched whose weights the checkpoint holds
    load_weights(retriever, open_retriever(config.init_from), f"init_from={config.init_from}")
    return retriever


@contextmanager
def _ended(trainer: Trainer, loggers: list[Logger]) -> Iterator[None]:
    """Leaves the process as it was: other ranks ended, W&B's run closed, no process group; also where the block raises."""
    ranks = trainer.strategy if isinstance(trainer.strategy, SameConfigDDP) else None
    failed = True
    try:
        yield
        failed = trainer.interrupted
    except RuntimeError as error:
        if ranks and ranks.another_failed():
            raise UserError("another rank failed, so this one did; what it said stands above") from error
        raise
    finally:
        if ranks and failed:
            ranks.end_ranks(failed=True)  # before the connection goes, which they would tell of at length
        _close(loggers)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if ranks and not failed:
            ranks.end_ranks(failed=False)


@contextmanager
def _continuable(folder: Path) -> Iterator[None]:
    """Adds to what went wrong how the run can be gone on with; a full disk and a dead loader are told of in plain words."""
    try:
        yield
    except UserError:
        if rank_zero_only.rank == 0 and unfinished_checkpoint(folder):
            log.info("to go on from the last checkpoint: ret-train resume=%s", folder)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{error.filename or folder}: {error.strerror}; make room, then ret-train resume={folder} goes on from the last "
            "checkpoint"
        ) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{reason}; a worker that is killed mostly means that memory ran out: fewer data.num_workers or a smaller "
            f"data.batch_size need less; ret-train resume={folder} goes on from the last checkpoint"
        ) from error


@contextmanager
def _wandb_files_in(folder: Path) -> Iterator[None]:
    """Where W&B keeps the pictures of its tables until they are sent; its own choice is a folder outside the run's."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def _quieten() -> None:
    """Lightning has handlers of its own, so with Hydra's it says everything twice; and some of it is advertising."""
    if rank_zero_only.rank != 0:
        logging.getLogger("ret_lightning").setLevel(logging.ERROR)  # the first process says it all
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    # Lightning's own use of a renamed class of torch; nothing that a user could mend.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    # What a resumed run's CSV file held is put back, see loggers.py.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    # The loaders are taken to where the run was, see data/datamodule.py.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    # Frozen backbones stay in eval mode on purpose.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")


def _finish(
    evaluation: RetrievalEvaluation, loggers: list[Logger], cost: Cost, folder: Path, step: int
) -> dict[str, float]:
    metrics = evaluation.flat_metrics("test")
    evaluation.write_rankings("test", folder / RANKINGS_FOLDER)
    bounds = evaluation.flat_intervals("test")
    tables = metrics_tables(evaluation.results["test"], metrics, bounds, "test")
    print_tables(tables)
    log_tables(loggers, tables)
    write_json(folder / INTERVALS_FILE, bounds)
    write_json(folder / COST_FILE, cost.measured())
    write_json(folder / ORIGIN_FILE, {**read_json(folder / ORIGIN_FILE), "tested_step": step})
    write_json(folder / METRICS_FILE, metrics)
    log.info("metrics, rankings and checkpoints are in %s", folder)
    return metrics


def _log_config(loggers: list[Logger], config: DictConfig) -> None:
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)
    for logger in loggers:
        logger.log_hyperparams(resolved)


def _close(loggers: list[Logger]) -> None:
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            # W&B keeps one run a process: the next job of a sweep would go on writing into this one.
            import wandb

            wandb.finish()
