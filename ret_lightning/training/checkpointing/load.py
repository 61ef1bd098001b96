"""Trained models: the record in a training checkpoint, and loading the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer

from ret_lightning._version import __version__
from ret_lightning.config.build import build
from ret_lightning.errors import UserError
from ret_lightning.inputs import Preprocessor
from ret_lightning.models import RetRetriever
from ret_lightning.models.checkpoint.files import not_a_folder
from ret_lightning.models.checkpoint.preprocessors import (
    preprocessor_records,
    record_differences,
    restored_preprocessors,
)
from ret_lightning.runtime.run_layout import CONFIG_FILE, METRICS_FILE, ORIGIN_FILE, read_json
from ret_lightning.training.checkpointing import selection_queries
from ret_lightning.training.checkpointing.checkpoint_io import RETRIEVER_PREFIX, read_checkpoint, stored_checkpoint
from ret_lightning.training.checkpointing.selection import (
    LAST_CHECKPOINT,
    Selected,
    best_checkpoint,
    selected_checkpoint,
)

log = logging.getLogger(__name__)

RECORD = "ret_lightning"


class RecordInCheckpoint(Callback):
    """Writes into every checkpoint what it takes to open it without its run folder, and how it did.

    Args:
        config: the run's, resolved, in plain containers.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the record; plain containers, since a checkpoint is read with `weights_only`."""
        tower = pl_module.retriever.query_tower
        validation = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/") and "@" in k}
        checkpoint[RECORD] = {
            "version": __version__,
            "config": self.config,
            "validation": validation,
            "stored_config": pl_module.retriever.stored_config,
            "sources": [tower.text_backbone.source, tower.vision_backbone.source],
            "preprocessors": preprocessor_records(tower),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raise UserError where the run prepares texts or images otherwise than the checkpoint's did."""
        stored = checkpoint.get(RECORD, {}).get("preprocessors", {})  # absent before 0.2
        here = preprocessor_records(pl_module.retriever.query_tower)
        for kind, record in stored.items():
            if differences := record_differences(record, here.get(kind)):
                raise UserError(
                    f"backbone.{kind} is not the one that the checkpoint was trained with: {'; '.join(differences)}; restore "
                    "the files and the code that it is built from, or start a new run",
                    code="preprocessor-changed",
                    key=f"backbone.{kind}",
                    differences=tuple(differences),
                )


@dataclass(frozen=True)
class Trained:
    """A model from a training checkpoint.

    Attributes:
        retriever: in eval mode, on the CPU.
        file: the checkpoint.
        config: the run's, resolved.
        epoch: 0-based, that it was written in.
        step: optimiser steps until then.
        validation: what the last validation before it gave, `<subset>/<metric>` to a value.
        test: the run's test metrics, likewise, if they are of this checkpoint; else empty.
        version: of ret_lightning, that wrote it.
    """

    retriever: RetRetriever
    file: Path
    config: dict[str, Any]
    epoch: int
    step: int
    validation: dict[str, float]
    test: dict[str, float]
    version: str


def open_retriever(source: str | Path) -> RetRetriever:
    """A retriever in eval mode, on the CPU, from whatever holds one.

    Args:
        source: a training checkpoint, a run folder (its best checkpoint, or else the last), a folder in the published
            layout, or a hub id.

    Raises:
        UserError: if it is none of these.
    """
    file = training_checkpoint(source)
    return open_file(file) if file is not None else RetRetriever.from_pretrained(source)


def open_file(file: Path) -> RetRetriever:
    """The retriever of a training checkpoint, in eval mode, on the CPU; raises as `load_trained`."""
    return load_trained(file).retriever


def training_checkpoint(source: str | Path, option: str = "checkpoint") -> Path | None:
    """The checkpoint file that a source is, or the one of a run folder to use; the log states which, and its step.

    Args:
        source: a file, or a run folder: its best checkpoint, or the last one where none was scored.
        option: what names the source, for the log.

    Returns:
        None where it is neither.

    Raises:
        UserError: if the file is no complete checkpoint of ret-train.
    """
    if not str(source):
        return None
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix in (".safetensors", ".json"):
            raise not_a_folder(path)
        file = path.resolve() if path.is_symlink() else path  # best.ckpt refers to another file
        selected: Selected | None = Selected(file, stored_checkpoint(file)["global_step"], "as named", is_best=False)
    else:
        selected = selected_checkpoint(path)
    if selected is None:
        return None
    level = logging.INFO if path.is_file() or selected.is_best else logging.WARNING
    log.log(level, "%s: %s", option, selected)
    return selected.file


def load_trained(file: Path) -> Trained:
    """The model of a training checkpoint, built by the config that stands in it.

    Raises:
        UserError: if the file is no checkpoint of ret-train, or a torn one.
    """
    checkpoint = _read(file)
    record, state = checkpoint[RECORD], checkpoint["state_dict"]
    config = record["config"]
    retriever = build_untrained(config, restored_preprocessors(record.get("preprocessors", {}), file))
    weights = {
        name.removeprefix(RETRIEVER_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(RETRIEVER_PREFIX)
    }
    try:
        retriever.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{file}: the weights do not fit its config ({reason})", code="checkpoint-weights-mismatch", path=str(file)
        ) from error
    retriever.stored_config = record["stored_config"]
    for tower in (retriever.query_tower, retriever.passage_tower):
        tower.text_backbone.source, tower.vision_backbone.source = record["sources"]
    return Trained(
        retriever=retriever.eval(),
        file=file,
        config=record["config"],
        epoch=checkpoint["epoch"],
        step=checkpoint["global_step"],
        validation={name.removeprefix("val/"): value for name, value in record["validation"].items()},
        test=_test_metrics(file, checkpoint["global_step"]),
        version=record["version"],
    )


def chosen_on(checkpoint: Path) -> str:
    """The queries that a checkpoint was chosen on, as `selected_on` defines the values.

    Args:
        checkpoint: a training checkpoint, or the folder of an exported model.

    Returns:
        `last` for the last checkpoint of a run; `unknown` for one that is neither the best nor the last of its run.
    """
    if checkpoint.is_dir():
        return str(read_json(checkpoint / ORIGIN_FILE).get(selection_queries.KEY, selection_queries.UNKNOWN))
    run = checkpoint.resolve().parent.parent
    if not (checkpoint.is_file() and (run / CONFIG_FILE).is_file()):
        return selection_queries.UNKNOWN
    best = best_checkpoint(run)
    if best is None or best[0].file.resolve() != checkpoint.resolve():
        return selection_queries.LAST if checkpoint.name == LAST_CHECKPOINT else selection_queries.UNKNOWN
    origin = read_json(run / ORIGIN_FILE)
    if (
        origin.get(selection_queries.KEY) == selection_queries.LAST
    ):  # of the weights that the run tested, not of its best ones
        del origin[selection_queries.KEY]
    config = yaml.safe_load((run / CONFIG_FILE).read_text(encoding="utf-8"))
    return selection_queries.of_run(origin, {**config, "test_with": "best"})


def build_untrained(config: Mapping[str, Any], preprocessors: Mapping[str, Preprocessor] | None = None) -> RetRetriever:
    """The model of a training config with random weights, also where the config names pretrained backbones.

    Args:
        config: of the run, resolved.
        preprocessors: `tokenizer` and `image_transform` of a checkpoint, used in place of the config's.
    """
    model, backbone = dict(config["model"]), dict(config["model"]["backbone"])
    if "pretrained" in backbone:
        backbone["pretrained"] = None
    if not preprocessors:
        return build({**model, "backbone": backbone})
    del model["backbone"]
    # Taken out of the config, which is not built: the files that it names may be gone.
    arguments = {kind: part for kind, part in preprocessors.items() if backbone.pop(kind, None) is not None}
    retriever: RetRetriever = build(model, backbone=build(backbone, **arguments))
    for tower in (retriever.query_tower, retriever.passage_tower):
        for kind, part in preprocessors.items():
            setattr(tower, kind, part)
    return retriever


def _read(file: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(file)
    if RECORD not in checkpoint:
        raise UserError(
            f"{file}: no checkpoint of ret-train (it has no {RECORD})", code="checkpoint-without-record", path=str(file)
        )
    return checkpoint


def _test_metrics(file: Path, step: int) -> dict[str, float]:
    """Of the run folder that a checkpoint stands in, if they are of its weights: the run's at this step."""
    run = file.resolve().parent.parent
    return read_json(run / METRICS_FILE) if read_json(run / ORIGIN_FILE).get("tested_step") == step else {}
