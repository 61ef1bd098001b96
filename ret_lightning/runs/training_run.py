"""A training run, from a checked config to `metrics.json`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from ret_lightning.config.build import build
from ret_lightning.config.nodes import to_plain
from ret_lightning.distributed.ddp import SameConfigDDP
from ret_lightning.errors import ConfigError
from ret_lightning.evaluation.callback import RetrievalEvaluation
from ret_lightning.evaluation.metric_tables import print_tables
from ret_lightning.models.compile_blocks import compile_blocks
from ret_lightning.ops.onednn_linear import linear_backend
from ret_lightning.runs.early_checks import check_devices, prepare_and_check, warn_if_not_storable
from ret_lightning.runs.initial_model import initial_retriever
from ret_lightning.runs.loggers import Resumed, WandbStep, build_loggers, log_config, log_tables, record_wandb_run
from ret_lightning.runs.process import (
    add_resume_hint,
    closing_run,
    filter_library_output,
    record_failure,
    wandb_files_in,
)
from ret_lightning.runs.results import write_results
from ret_lightning.runs.resume.csv_rows import KEY as UNLOGGED_ROW
from ret_lightning.runs.resume.csv_rows import UnloggedRow
from ret_lightning.runs.resume.resume_checks import ResumedLearningRate, SameConfig
from ret_lightning.runs.resume.resumed_config import stored_config
from ret_lightning.runs.resume.same_run import last_whole_checkpoint
from ret_lightning.runs.resume.takeover import Takeover, refuse_taken
from ret_lightning.runtime.lock import alone_in, is_first_rank
from ret_lightning.runtime.run_layout import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    COST_FILE,
    METRICS_FILE,
    ORIGIN_FILE,
    read_json,
    write_json,
)
from ret_lightning.training.callbacks.cost import Cost
from ret_lightning.training.callbacks.rng_states import RandomStates
from ret_lightning.training.callbacks.stop_on_signal import StopOnSignal
from ret_lightning.training.checkpointing import selection_queries
from ret_lightning.training.checkpointing.checkpoint_io import RunCheckpointIO, open_checkpoint, repair_checkpoints
from ret_lightning.training.checkpointing.last_checkpoint import LastCheckpoint
from ret_lightning.training.checkpointing.load import CheckpointRecord, build_untrained
from ret_lightning.training.checkpointing.selection import find_best_checkpoint
from ret_lightning.training.module import RetModule

log = logging.getLogger(__name__)

_PICTURES = ("loss.png", "recall_curves.png", "examples/test.png")  # most useful files of conf/callbacks/default.yaml


def run_training(config: DictConfig, resume: bool = False) -> dict[str, float]:
    """Train, validate after every epoch, test, and write all results to the run folder.

    Args:
        config: config of ret-train; its `output_dir` is the run folder.
        resume: whether to resume from the last complete checkpoint of the run folder. Without a checkpoint, training starts
            from the beginning.

    Returns:
        The test metrics of `metrics.json`, which is written last. Empty with `test_with=none`, which writes no such file.

    Raises:
        UserError: if the config, the data or the machine does not allow the run.
    """
    folder = Path(config.output_dir)
    check_devices(config.trainer)
    with linear_backend(_backend_setting(folder, config, resume)) as backend, alone_in(folder):
        # Stored, so that a resumed run uses the same backend.
        OmegaConf.update(config, "linear_backend", backend, force_add=True)
        if not resume and is_first_rank():
            refuse_taken(folder)
        takeover = Takeover(folder, config, resume)
        try:
            with record_failure(folder):
                return _train(folder, config, takeover, resume)
        finally:
            takeover.abandon()


def _backend_setting(folder: Path, config: DictConfig, resume: bool) -> str:
    """Return `linear_backend`; with `auto`, a resumed run uses the backend that it was started with."""
    setting = config.get("linear_backend", "auto")
    if setting == "auto" and resume and (folder / CONFIG_FILE).is_file():
        return stored_config(folder).get("linear_backend", "auto")
    return setting


def _train(folder: Path, config: DictConfig, takeover: Takeover, resume: bool) -> dict[str, float]:
    filter_library_output()
    checkpoint, resumed = _load_resume_state(folder, takeover) if resume else (None, None)
    evaluation: RetrievalEvaluation = build(config.evaluation)
    loggers = build_loggers(config, folder, resumed)
    cost = Cost()
    # The evaluation comes first because other callbacks read its results.
    callbacks = [
        evaluation,
        cost,
        SameConfig(config),
        CheckpointRecord(to_plain(config, resolve=True)),
        UnloggedRow(),
        WandbStep(),
        ResumedLearningRate(),
        RandomStates(),
        *(build(n) for n in config.callbacks.values() if n is not None),
    ]
    # Callbacks that save come last, so that checkpoints include the state of the others.
    callbacks.sort(key=lambda callback: isinstance(callback, (StopOnSignal, LastCheckpoint)))
    if config.trainer.get("enable_progress_bar") is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    plugins = [RunCheckpointIO(on_saved=takeover.commit)]
    trainer: Trainer = build(config.trainer, logger=loggers or False, callbacks=callbacks, plugins=plugins)
    if isinstance(trainer.strategy, SameConfigDDP):
        trainer.strategy.set_rank_function(run_training, resume=resume)
        trainer.strategy.config_file = str(takeover.config_file)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    data: LightningDataModule = build(config.data)
    module = RetModule(
        retriever=build_untrained(to_plain(config, resolve=True)) if checkpoint else initial_retriever(config),
        loss=build(config.loss),
        optimizer=build(config.optimizer),
        scheduler=build(config.scheduler),
        backbone_learning_rate_scale=config.backbone_learning_rate_scale,
        on_nonfinite=config.on_nonfinite,
        micro_batch=config.get("micro_batch"),
    )
    if config.compile:
        compile_blocks(module.retriever)
    with wandb_files_in(folder / "wandb"), closing_run(trainer, loggers), add_resume_hint(folder):
        if is_first_rank():  # before any logger or rank starts
            warn_if_not_storable(module.retriever)
            prepare_and_check(data, trainer, config)
        log_config(loggers, config)
        record_wandb_run(loggers, folder)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if not trainer.interrupted:
            takeover.commit()
        best = trainer.strategy.broadcast(find_best_checkpoint(folder) if trainer.is_global_zero else None)
        if trainer.is_global_zero and not trainer.interrupted:
            scores = {best[1]: best[0].scores[best[1]]} if best else {}
            origin = {
                **read_json(folder / ORIGIN_FILE),
                "best": scores,
                selection_queries.SELECTED_ON: _selection_source(data, best, config),
            }
            write_json(folder / ORIGIN_FILE, origin)
        if trainer.interrupted or config.test_with == "none":
            log.info("%s is not written because the run was not tested; checkpoints are in %s", METRICS_FILE, folder)
            return {}
        tested = best[0] if best and config.test_with == "best" else None
        reason = "" if config.test_with == "last" else " (there is no best checkpoint)"
        log.info("testing %s", f"{tested.file}, step {tested.step}" if tested else f"the last step{reason}")
        trainer.test(
            module, datamodule=data, ckpt_path=tested.file if tested else None, weights_only=True, verbose=False
        )
        step = tested.step if tested else trainer.global_step
        metrics, tables = (
            _write_and_log_results(evaluation, loggers, cost, folder, step) if trainer.is_global_zero else ({}, [])
        )
    if tables:  # after the last output of W&B
        print_tables(tables)
        pictures = [name for name in _PICTURES if (folder / name).is_file()]
        log.info(
            "metrics, rankings and checkpoints are in %s%s",
            folder,
            f"; see {', '.join(pictures)}" if pictures else "",
        )
    return metrics


def _selection_source(data: Any, best: object, config: DictConfig) -> str:
    """Return the source of the queries that selected the tested weights."""
    if not best or config.test_with != "best":
        return selection_queries.LAST
    return selection_queries.from_sources(subset.source for subset in data.evaluation_subsets("val"))


def _load_resume_state(folder: Path, takeover: Takeover) -> tuple[Path | None, Resumed | None]:
    """Return the checkpoint that a run resumes from, and its state for the loggers."""
    if is_first_rank():
        repair_checkpoints(folder / CHECKPOINTS_FOLDER)
    checkpoint = last_whole_checkpoint(folder)
    if checkpoint is None:
        log.info("starting from the beginning: %s has no complete checkpoint", folder)
        return None, None
    stored = open_checkpoint(checkpoint)
    log.info("resuming from %s, step %d", checkpoint, stored["global_step"])
    return checkpoint, Resumed(stored["global_step"], stored.get(UNLOGGED_ROW), takeover.on_commit, takeover.on_abandon)


def best_validation(folder: Path) -> float:
    """Return the score of a run's best checkpoint, the objective of a hyperparameter search.

    The objective is a validation metric, because test queries must not select hyperparameters.

    Args:
        folder: folder of a completely trained run.

    Raises:
        ConfigError: if no checkpoint has a score.
    """
    best = find_best_checkpoint(folder)
    if best is None:
        raise ConfigError(
            f"{folder}: no checkpoint has a score, which a search requires; set callbacks.checkpoint.monitor, and run at least "
            "one validation",
            code="search-without-score",
            folder=str(folder),
        )
    candidate, monitor = best
    return candidate.scores[monitor]


def _write_and_log_results(
    evaluation: RetrievalEvaluation, loggers: list[Logger], cost: Cost, folder: Path, step: int
) -> tuple[dict[str, float], list[Table]]:
    chosen = selection_queries.describe(read_json(folder / ORIGIN_FILE)[selection_queries.SELECTED_ON])
    metrics, tables = write_results(evaluation.results["test"], "test", folder, f"checkpoint: step {step}, {chosen}")
    log_tables(loggers, tables)
    write_json(folder / COST_FILE, cost.collect())
    write_json(folder / ORIGIN_FILE, {**read_json(folder / ORIGIN_FILE), "tested_step": step})
    write_json(folder / METRICS_FILE, metrics)
    return metrics, tables
