"""Evaluation of a checkpoint on a dataset, with results in `metrics.json`."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning
from lightning import Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from ret_lightning._version import __version__
from ret_lightning.config.build import build
from ret_lightning.data.datamodule import RetrievalDataModule
from ret_lightning.data.types import Split
from ret_lightning.distributed.ddp import SameConfigDDP
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.evaluation.callback import RetrievalEvaluation
from ret_lightning.evaluation.encoding_module import EncodingModule
from ret_lightning.evaluation.evaluation_result import EvaluationResult
from ret_lightning.evaluation.metric_tables import print_tables
from ret_lightning.evaluation.stored_sink import StoredSink
from ret_lightning.models import RetRetriever
from ret_lightning.models.checkpoint.preprocessors import preprocessor_records, record_differences
from ret_lightning.runs.early_checks import check_devices, check_evaluation_limit
from ret_lightning.runs.loggers import (
    WANDB_ID_FILE,
    Resumed,
    build_loggers,
    log_config,
    log_tables,
    record_wandb_run,
)
from ret_lightning.runs.process import closing_run, filter_library_output, is_killed_worker, wandb_files_in
from ret_lightning.runs.results import write_results
from ret_lightning.runs.resume.resumed_config import upgrade_validation
from ret_lightning.runs.resume.takeover import refuse_evaluated
from ret_lightning.runtime.atomic_files import disk_full, disk_is_full, write_text
from ret_lightning.runtime.lock import alone_in, is_first_rank
from ret_lightning.runtime.run_layout import (
    CONFIG_FILE,
    EMBEDDINGS_FOLDER,
    METRICS_FILE,
    ORIGIN_FILE,
    TIMINGS_FILE,
    write_json,
)
from ret_lightning.training.callbacks.progress_bar import Progress
from ret_lightning.training.checkpointing import selection_queries
from ret_lightning.training.checkpointing.checkpoint_io import open_checkpoint
from ret_lightning.training.checkpointing.load import (
    RECORD,
    find_training_checkpoint,
    load_retriever,
    open_retriever,
    read_selected_on,
)

log = logging.getLogger(__name__)


def run_evaluation(config: DictConfig) -> dict[str, float]:
    """Evaluate a checkpoint, and write metrics, rankings and timings to a folder.

    The batches and the callback are those of the test of ret-train, so the metrics are equal. Embeddings are stored on disk,
    and an interrupted evaluation resumes with the stored ones.

    Args:
        config: config of ret-evaluate; results are written to its `output_dir`.

    Returns:
        The metrics of `metrics.json`, which is written last and atomically; empty on ranks other than the first.

    Raises:
        UserError: if the config, the checkpoint, the data or the machine does not allow the evaluation. Stored embeddings
            are kept.
    """
    folder = Path(config.output_dir)
    check_devices(config.trainer)
    file = find_training_checkpoint(config.checkpoint)
    if file is not None:  # fixed for all ranks, even if a training run adds checkpoints
        config.checkpoint = str(file)
    with alone_in(folder):
        _prepare_folder(folder, config.keep_embeddings)
        with _add_resume_hint(folder):
            return _evaluate(folder, config)


def _evaluate(folder: Path, config: DictConfig) -> dict[str, float]:
    started = time.perf_counter()
    filter_library_output()
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    path = Path(config.checkpoint).expanduser()
    retriever = load_retriever(path) if path.is_file() else open_retriever(config.checkpoint)
    data: RetrievalDataModule = build(config.data, **_shared_preprocessors(retriever, config.checkpoint))
    if is_first_rank():
        data.check_files((config.split,))
    sink = StoredSink(folder / EMBEDDINGS_FOLDER, retriever, config.split, _embedding_settings(config, data))
    evaluation: RetrievalEvaluation = build(config.evaluation)
    evaluation.sink = sink
    # An evaluation that is run again after an interruption resumes its W&B run.
    resumed = Resumed(0, None) if (folder / WANDB_ID_FILE).is_file() else None
    loggers = build_loggers(config, folder, resumed)
    for start in resumed.on_commit if resumed else ():
        start()  # an evaluation logs only at its end, so no earlier rows are kept
    callbacks = [evaluation, *(build(node) for node in config.callbacks.values() if node is not None)]
    if config.trainer.get("enable_progress_bar") is not False:
        callbacks.append(Progress())
    trainer: Trainer = build(config.trainer, logger=loggers or False, callbacks=callbacks, enable_checkpointing=False)
    if is_first_rank():  # before anything is written
        data.setup("test" if config.split == "test" else "validate")
        check_evaluation_limit(data, trainer, config.split, ranks=1)  # the sink limits whole files
        _warn_of_training_rows(data, config)
    # The sink applies the limit (after fast_dev_run and overfit_batches) to all rows, not only to the remaining ones.
    limit = f"limit_{config.split}_batches"
    batches = partial(sink.begin, batch_size=data.eval_batch_size, limit=getattr(trainer, limit))
    data.choose_batches = batches  # type: ignore[method-assign]  # of this evaluation only
    setattr(trainer, limit, 1.0)
    if isinstance(trainer.strategy, SameConfigDDP):
        trainer.strategy.set_rank_function(run_evaluation)
    with wandb_files_in(folder / "wandb"), closing_run(trainer, loggers), _store_config(folder, config, sink):
        log_config(loggers, config)
        record_wandb_run(loggers, folder)
        run = trainer.test if config.split == "test" else trainer.validate
        run(EncodingModule(retriever), datamodule=data, verbose=False)
        metrics: dict[str, float] = {}
        tables: list[Table] = []
        if trainer.is_global_zero:
            seconds = _logged_seconds(trainer, config.split)
            result = evaluation.results[config.split]
            metrics, tables = _write_and_log_results(
                result, loggers, config, seconds, started, sum(sink.before.values())
            )
        if not config.keep_embeddings:
            sink.remove()
    if tables:  # after the last output of W&B
        print_tables(tables)
    log.info("metrics, rankings and timings are in %s", folder)
    return metrics


def _shared_preprocessors(retriever: RetRetriever, checkpoint: str) -> dict[str, Any]:
    """Return the tokenizer and the image transform of both towers; raise ConfigError if the towers differ."""
    query, passage = retriever.query_tower, retriever.passage_tower
    ours, theirs = preprocessor_records(query), preprocessor_records(passage)
    for kind in ("tokenizer", "image_transform"):
        if getattr(query, kind) is getattr(passage, kind) or kind not in ours:
            continue
        if differences := record_differences(ours[kind], theirs.get(kind), ("the query tower", "the passage tower")):
            raise ConfigError(
                f"checkpoint={checkpoint}: the towers have different {kind}s ({'; '.join(differences)}); expected the same one",
                code="towers-prepared-differently",
                key=kind,
                found=tuple(differences),
            )
    return {"tokenizer": query.tokenizer, "image_transform": query.image_transform}


def _embedding_settings(config: DictConfig, data: RetrievalDataModule) -> dict[str, Any]:
    """Return the settings that the embeddings depend on, besides the model and the rows."""
    images = data.layout.images
    return {
        "trainer.precision": str(config.trainer.get("precision")),
        "data.image_folder": images if isinstance(images, str) else list(images),
        "data.max_image_pixels": data.max_image_pixels,
    }


def _warn_of_training_rows(data: RetrievalDataModule, config: DictConfig) -> None:
    """Warn if the checkpoint may have been trained on the held-out training rows that are the queries."""
    if config.split != "val" or "holdout" not in data.validated_on.values():
        return
    file = Path(config.checkpoint)
    record = open_checkpoint(file).get(RECORD, {}) if file.is_file() else {}
    trained: dict[str, Any] = upgrade_validation(record.get("config", {})).get("data", {})
    settings = {key: config.data.get(key) for key in ("holdout_rows", "holdout_fraction")}
    held_out = trained.get("validation") in ("auto", "holdout")
    if held_out and all(trained.get(key) == value for key, value in settings.items()):
        return
    reason = (
        "its training config is not stored"
        if not trained
        else f"it was trained with data.validation={trained.get('validation')}"
        if not held_out
        else "it was trained with other holdout settings"
    )
    log.warning(
        "val: the queries are held-out training rows, and %s was probably trained on them (%s); the metrics are too high. "
        "split=test is not affected",
        config.checkpoint, reason,
    )  # fmt: skip


@contextmanager
def _add_resume_hint(folder: Path) -> Iterator[None]:
    """Convert a full disk and a killed loader worker to a UserError that states how to resume the evaluation."""
    hint = f"the stored embeddings are kept; to resume, run the same command with output_dir={folder}"
    try:
        yield
    except Exception as error:
        if disk_is_full(error, folder):
            raise disk_full(folder, f"; {hint}") from error
        if not is_killed_worker(error):
            raise
        raise UserError(
            f"{str(error).splitlines()[0]}; a killed worker usually means out of memory; reduce data.num_workers or "
            f"data.eval_batch_size; {hint}",
            code="evaluation-worker-killed",
            folder=str(folder),
        ) from error


@contextmanager
def _store_config(folder: Path, config: DictConfig, sink: StoredSink) -> Iterator[None]:
    """Write the config to the folder for the other ranks, and restore the earlier config if the evaluation is refused."""
    if not is_first_rank():  # by the environment: no process group exists yet
        yield
        return
    file = folder / CONFIG_FILE
    earlier = file.read_text(encoding="utf-8") if file.exists() else None
    write_text(file, OmegaConf.to_yaml(config, resolve=True))
    try:
        yield
    except BaseException:
        if earlier is not None and not sink.before:  # the stored embeddings belong to the earlier config
            write_text(file, earlier)
        raise


def _prepare_folder(folder: Path, keep_embeddings: bool) -> None:
    """Remove leftover embeddings of a finished evaluation, and raise an error if the folder cannot be used."""
    if not is_first_rank():
        return
    if (folder / METRICS_FILE).exists() and not keep_embeddings:
        _remove_leftover_embeddings(folder)
    refuse_evaluated(folder)


def _remove_leftover_embeddings(folder: Path) -> None:
    """Delete the embeddings of a finished evaluation with `keep_embeddings=false` that was killed before it deleted them."""
    if not (folder / EMBEDDINGS_FOLDER).exists() or not (folder / CONFIG_FILE).exists():
        return
    if OmegaConf.select(OmegaConf.load(folder / CONFIG_FILE), "keep_embeddings") is False:
        shutil.rmtree(folder / EMBEDDINGS_FOLDER, ignore_errors=True)
        log.info("%s: removed the embeddings of a finished evaluation", folder / EMBEDDINGS_FOLDER)


def _logged_seconds(trainer: Trainer, split: Split) -> dict[str, float]:
    """Return the logged duration of each part of the evaluation, in seconds."""
    prefix = f"{split}/seconds/"
    logged = trainer.callback_metrics.items()
    return {name.removeprefix(prefix): float(value) for name, value in logged if name.startswith(prefix)}


def _write_and_log_results(
    result: EvaluationResult,
    loggers: list[Logger],
    config: DictConfig,
    seconds: dict[str, float],
    started: float,
    before: int,
) -> tuple[dict[str, float], list[Table]]:
    folder, split = Path(config.output_dir), config.split
    checkpoint = Path(config.checkpoint)
    chosen = read_selected_on(checkpoint)
    metrics, tables = write_results(
        result, split, folder, f"checkpoint: {checkpoint}, {selection_queries.describe(chosen)}"
    )
    log_tables(loggers, tables)
    origin: dict[str, Any] = {
        "checkpoint": config.checkpoint,
        selection_queries.SELECTED_ON: chosen,
        "split": split,
        "version": __version__,
    }
    ann_recall = {name: own.ann_recall for name, own in result.subsets.items() if own.ann_recall}
    write_json(folder / ORIGIN_FILE, origin | ({"ann_recall": ann_recall} if ann_recall else {}))
    timings = {
        "seconds": seconds | {"everything": time.perf_counter() - started},
        "passages": sum(len(own.indexed_rows) for own in result.subsets.values()),
        "queries": sum(len(own.query_rows) for own in result.subsets.values()),
        "encoded_before": before,  # rows encoded by an interrupted process, not part of the seconds
    }
    write_json(folder / TIMINGS_FILE, timings)
    write_json(folder / METRICS_FILE, metrics)
    return metrics, tables
