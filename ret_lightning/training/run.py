"""The course of a training run, from a checked config to `metrics.json`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from ret_lightning import __version__
from ret_lightning.atomic import write_text
from ret_lightning.config.build import build
from ret_lightning.errors import ConfigError
from ret_lightning.models import RetRetriever
from ret_lightning.models.checkpoint import load_weights
from ret_lightning.models.compiled import compile_blocks
from ret_lightning.training.checkpoint_files import RunCheckpointIO, stored_step
from ret_lightning.training.code_version import code_version
from ret_lightning.training.cost import Cost
from ret_lightning.training.evaluation import RetrievalEvaluation
from ret_lightning.training.folder import (
    CONFIG_FILE,
    COST_FILE,
    FAILURE_FILE,
    METRICS_FILE,
    ORIGIN_FILE,
    read_json,
    write_json,
)
from ret_lightning.training.last_checkpoint import LastCheckpoint
from ret_lightning.training.loggers import build_loggers, log_tables, record_wandb_run
from ret_lightning.training.module import RetModule
from ret_lightning.training.process import alone_in, continuable, ended, failure_noted, quieten, wandb_files_in
from ret_lightning.training.random_states import RandomStates
from ret_lightning.training.ranks import SameConfigDDP
from ret_lightning.training.results import write_results
from ret_lightning.training.resumption import last_whole_checkpoint, remove_unfinished_files, unfinished_checkpoint
from ret_lightning.training.signals import StopOnSignal
from ret_lightning.training.summary import print_tables
from ret_lightning.training.trained import RecordInCheckpoint, build_untrained, open_retriever

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
    with alone_in(folder):
        _take_folder(folder, config, resume)
        with failure_noted(folder):
            return _train(folder, config, resume)


def _train(folder: Path, config: DictConfig, resume: bool) -> dict[str, float]:
    quieten()
    checkpoint = last_whole_checkpoint(folder) if resume else None
    step = stored_step(checkpoint) if checkpoint else None
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
    # Last those that save, so that what they save tells what the other callbacks have just done.
    callbacks.sort(key=lambda callback: isinstance(callback, (StopOnSignal, LastCheckpoint)))
    if config.trainer.get("enable_progress_bar") is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    trainer: Trainer = build(config.trainer, logger=loggers or False, callbacks=callbacks, plugins=[RunCheckpointIO()])
    if isinstance(trainer.strategy, SameConfigDDP):
        trainer.strategy.resume = resume
    with wandb_files_in(folder / "wandb"), ended(trainer, loggers), continuable(folder):
        _log_config(loggers, config)
        record_wandb_run(loggers, folder)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if trainer.is_global_zero and not trainer.interrupted:
            write_json(folder / ORIGIN_FILE, {**read_json(folder / ORIGIN_FILE), "best": _best(trainer)})
        if trainer.interrupted or config.test_with == "none":
            log.info("not tested, so there is no %s; checkpoints are in %s", METRICS_FILE, folder)
            return {}
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") if config.test_with == "best" else ""
        missing = "" if best or config.test_with == "last" else ", since there is no best checkpoint"
        log.info("testing the weights of %s", best or f"the last step{missing}")
        trainer.test(module, datamodule=data, ckpt_path=best or None, weights_only=True, verbose=False)
        step = stored_step(Path(best)) if best else trainer.global_step
        return _finish(evaluation, loggers, cost, folder, step) if trainer.is_global_zero else {}


def _best(trainer: Trainer) -> dict[str, float]:
    """The metric that checkpoints are chosen by, and its best value; empty where there is none."""
    callback = trainer.checkpoint_callback
    score = getattr(callback, "best_model_score", None)
    return {} if score is None else {callback.monitor: float(score)}


def best_validation(folder: Path) -> float:
    """The best value, over a run, of the metric that its checkpoints are chosen by: what a search over settings is after.

    A metric of the test split would choose settings by the queries that are to judge them.

    Args:
        folder: of a run that has been trained to its end.

    Raises:
        ConfigError: if nothing was validated.
    """
    found = list(read_json(folder / ORIGIN_FILE).get("best", {}).values())
    if not found:
        raise ConfigError(
            f"{folder}: a search needs a value to go by, the best of callbacks.checkpoint.monitor, and there is none; "
            "is callbacks.checkpoint there, and does a validation run before the end?"
        )
    return found[0]


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


def _initial_retriever(config: DictConfig) -> RetRetriever:
    if config.init_from is None:
        return build(config.model)
    retriever = build_untrained(config)  # no backbone is fetched whose weights the checkpoint holds
    load_weights(retriever, open_retriever(config.init_from), f"init_from={config.init_from}")
    return retriever


def _finish(
    evaluation: RetrievalEvaluation, loggers: list[Logger], cost: Cost, folder: Path, step: int
) -> dict[str, float]:
    metrics, tables = write_results(evaluation, "test", folder)
    log_tables(loggers, tables)
    write_json(folder / COST_FILE, cost.measured())
    write_json(folder / ORIGIN_FILE, {**read_json(folder / ORIGIN_FILE), "tested_step": step})
    write_json(folder / METRICS_FILE, metrics)
    print_tables(tables)
    log.info("metrics, rankings and checkpoints are in %s", folder)
    return metrics


def _log_config(loggers: list[Logger], config: DictConfig) -> None:
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)
    for logger in loggers:
        logger.log_hyperparams(resolved)
