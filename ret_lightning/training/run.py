"""The course of a training run, from a checked config to `metrics.json`."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from ret_lightning.config.build import build
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.training.evaluation import RetrievalEvaluation
from ret_lightning.training.module import RetModule
from ret_lightning.training.ranks import SameConfigDDP
from ret_lightning.training.summary import metrics_tables, print_tables

log = logging.getLogger(__name__)

METRICS_FILE, CONFIG_FILE, RANKINGS_FOLDER = "metrics.json", "config.yaml", "rankings"


def train(config: DictConfig) -> dict[str, float]:
    """Trains, evaluates after every epoch, tests, and leaves everything in the run folder.

    Args:
        config: as ret-train composes it; `output_dir` is the run folder.

    Returns:
        The metrics of the test split, as in `metrics.json`, which is written last and whole; empty where
        `test_with=none`, and then there is no such file.

    Raises:
        UserError: on what the user can mend.
    """
    folder = Path(config.output_dir)
    if rank_zero_only.rank == 0:  # by the environment: no process group exists yet
        if (folder / METRICS_FILE).exists():
            raise ConfigError(
                f"output_dir={folder}: holds a finished run ({METRICS_FILE}); choose another folder, or remove this one"
            )
        write_whole(folder / CONFIG_FILE, OmegaConf.to_yaml(config, resolve=True))
    else:
        logging.getLogger("ret_lightning").setLevel(logging.ERROR)  # the first process says it all
    _quieten_lightning()
    # Lightning's own use of a renamed class of torch; nothing that a user could mend.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    # Frozen backbones stay in eval mode on purpose.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    data: LightningDataModule = build(config.data)
    module = RetModule(
        retriever=build(config.model),
        loss=build(config.loss),
        optimizer=build(config.optimizer),
        scheduler=build(config.scheduler),
        backbone_learning_rate_scale=config.backbone_learning_rate_scale,
    )
    evaluation: RetrievalEvaluation = build(config.evaluation)
    loggers = [build(node) for node in config.logger.values() if node is not None]
    # The evaluation comes first: the other callbacks read what it found.
    callbacks = [evaluation, *(build(node) for node in config.callbacks.values() if node is not None)]
    trainer: Trainer = build(config.trainer, logger=loggers or False, callbacks=callbacks)
    failed = True
    # Where W&B keeps the pictures of its tables until they are sent; its own choice is a folder outside the run's.
    own_wandb_folder = "WANDB_DATA_DIR" not in os.environ
    if own_wandb_folder:
        os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
    try:
        _log_config(loggers, config)
        trainer.fit(module, datamodule=data)
        if trainer.interrupted or config.test_with == "none":
            failed = trainer.interrupted
            log.info("not tested, so there is no %s; checkpoints are in %s", METRICS_FILE, folder)
            return {}
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") if config.test_with == "best" else ""
        missing = "" if best or config.test_with == "last" else ", since there is no best checkpoint"
        log.info("testing the weights of %s", best or f"the last step{missing}")
        trainer.test(module, datamodule=data, ckpt_path="best" if best else None, weights_only=True, verbose=False)
        failed = False
        return _finish(evaluation, folder) if trainer.is_global_zero else {}
    except RuntimeError as error:
        if isinstance(trainer.strategy, SameConfigDDP) and trainer.strategy.another_failed():
            raise UserError("another rank failed, so this one did; what it said stands above") from error
        raise
    finally:
        ranks = trainer.strategy if isinstance(trainer.strategy, SameConfigDDP) else None
        if ranks and failed:
            ranks.end_ranks(failed)  # before the connection goes, which they would tell of at length
        _close(loggers)
        if own_wandb_folder:
            del os.environ["WANDB_DATA_DIR"]
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if ranks:
            ranks.end_ranks(failed)


def _quieten_lightning() -> None:
    """Lightning has handlers of its own, so with Hydra's it says everything twice; and some of it is advertising."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


def write_whole(file: Path, text: str) -> None:
    """Writes a text file so that it is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def _finish(evaluation: RetrievalEvaluation, folder: Path) -> dict[str, float]:
    metrics = evaluation.flat_metrics("test")
    evaluation.write_rankings("test", folder / RANKINGS_FOLDER)
    print_tables(metrics_tables(evaluation.results["test"], "test"))
    write_whole(folder / METRICS_FILE, json.dumps(metrics, indent=2, sort_keys=True) + "\n")
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
