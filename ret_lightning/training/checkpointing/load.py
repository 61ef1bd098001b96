"""Load models from training checkpoints, and read what a checkpoint records about its run."""

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
from ret_lightning.training.checkpointing.checkpoint_io import RETRIEVER_PREFIX, read_checkpoint, read_step
from ret_lightning.training.checkpointing.selection import (
    LAST_CHECKPOINT,
    SelectedCheckpoint,
    find_best_checkpoint,
    select_checkpoint,
)

log = logging.getLogger(__name__)

RECORD = "ret_lightning"


class CheckpointRecord(Callback):
    """Adds a record to every checkpoint, from which the model can be loaded without the run folder.

    Args:
        config: the resolved config of the run, in plain containers.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the record, in plain containers, since checkpoints are read with `weights_only`."""
        retriever: Any = pl_module.retriever
        tower = retriever.query_tower
        validation = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/") and "@" in k}
        checkpoint[RECORD] = {
            "version": __version__,
            "config": self.config,
            "validation": validation,
            "stored_config": retriever.stored_config,
            "sources": [tower.text_backbone.source, tower.vision_backbone.source],
            "preprocessors": preprocessor_records(tower),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check that the run preprocesses texts and images as the checkpoint's run did.

        Raises:
            UserError: if the tokenizer or the image transform differs.
        """
        stored = checkpoint.get(RECORD, {}).get("preprocessors", {})  # absent before 0.2
        retriever: Any = pl_module.retriever
        current = preprocessor_records(retriever.query_tower)
        for kind, record in stored.items():
            if differences := record_differences(record, current.get(kind)):
                raise UserError(
                    f"backbone.{kind}: differs from the checkpoint's: {'; '.join(differences)}; restore its files and code, or "
                    "start a new run",
                    code="preprocessor-changed",
                    key=f"backbone.{kind}",
                    differences=tuple(differences),
                )


@dataclass(frozen=True)
class TrainedModel:
    """A model loaded from a training checkpoint.

    Attributes:
        retriever: the model, in eval mode, on the CPU.
        file: the checkpoint.
        config: the resolved config of the run.
        epoch: 0-based epoch in which the checkpoint was written.
        step: number of optimizer steps before the checkpoint.
        validation: metrics of the last validation before the checkpoint, `<subset>/<metric>` to value.
        test: test metrics of the run, `<subset>/<metric>` to value; empty if they belong to another checkpoint.
        version: version of ret_lightning that wrote the checkpoint.
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
    """Load a retriever in eval mode on the CPU.

    Args:
        source: a training checkpoint; a run folder, whose best checkpoint is loaded, or the last one if none was
            scored; a folder in the published layout; or a hub id.

    Raises:
        UserError: if the source is none of these.
    """
    file = find_training_checkpoint(source)
    return load_retriever(file) if file is not None else RetRetriever.from_pretrained(source)


def load_retriever(file: Path) -> RetRetriever:
    """Load the retriever of a training checkpoint in eval mode on the CPU.

    Args:
        file: the checkpoint.

    Raises:
        UserError: if the file is not a complete checkpoint of ret-train.
    """
    return load_trained_model(file).retriever


def find_training_checkpoint(source: str | Path, option: str = "checkpoint") -> Path | None:
    """Find the training checkpoint of a source, and log the file and its step.

    Args:
        source: a checkpoint, or a run folder, of which the best checkpoint is used, or the last one if none was scored.
        option: the option that names the source, for the log.

    Returns:
        The checkpoint, or None if the source is neither.

    Raises:
        UserError: if the file is not a complete checkpoint of ret-train.
    """
    if not str(source):
        return None
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix in (".safetensors", ".json"):
            raise not_a_folder(path)
        file = path.resolve() if path.is_symlink() else path  # best.ckpt is a link
        selected: SelectedCheckpoint | None = SelectedCheckpoint(
            file, read_step(file), "named explicitly", is_best=False
        )
    else:
        selected = select_checkpoint(path)
    if selected is None:
        return None
    level = logging.INFO if path.is_file() or selected.is_best else logging.WARNING
    log.log(level, "%s: %s", option, selected)
    return selected.file


def load_trained_model(file: Path) -> TrainedModel:
    """Load the model of a training checkpoint, built from the config that the checkpoint contains.

    Args:
        file: the checkpoint.

    Raises:
        UserError: if the file is not a complete checkpoint of ret-train, or its weights do not match its config.
    """
    checkpoint = _read_with_record(file)
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
            f"{file}: the weights do not match the config of the checkpoint ({reason})",
            code="checkpoint-weights-mismatch",
            path=str(file),
        ) from error
    retriever.stored_config = record["stored_config"]
    for tower in (retriever.query_tower, retriever.passage_tower):
        tower.text_backbone.source, tower.vision_backbone.source = record["sources"]
    return TrainedModel(
        retriever=retriever.eval(),
        file=file,
        config=record["config"],
        epoch=checkpoint["epoch"],
        step=checkpoint["global_step"],
        validation={name.removeprefix("val/"): value for name, value in record["validation"].items()},
        test=_read_test_metrics(file, checkpoint["global_step"]),
        version=record["version"],
    )


def read_selected_on(checkpoint: Path) -> str:
    """Read on which queries a checkpoint was selected.

    Args:
        checkpoint: a training checkpoint, or the folder of an exported model.

    Returns:
        A value of `selected_on`, as defined by `selection_queries`: `last` for the last checkpoint of a run; `unknown`
        for a checkpoint that is neither the best nor the last of its run.
    """
    if checkpoint.is_dir():
        return str(read_json(checkpoint / ORIGIN_FILE).get(selection_queries.SELECTED_ON, selection_queries.UNKNOWN))
    run = checkpoint.resolve().parent.parent
    if not (checkpoint.is_file() and (run / CONFIG_FILE).is_file()):
        return selection_queries.UNKNOWN
    best = find_best_checkpoint(run)
    if best is None or best[0].file.resolve() != checkpoint.resolve():
        return selection_queries.LAST if checkpoint.name == LAST_CHECKPOINT else selection_queries.UNKNOWN
    origin = read_json(run / ORIGIN_FILE)
    # `last` refers to the weights that the run tested, not to its best checkpoint.
    if origin.get(selection_queries.SELECTED_ON) == selection_queries.LAST:
        del origin[selection_queries.SELECTED_ON]
    config = yaml.safe_load((run / CONFIG_FILE).read_text(encoding="utf-8"))
    return selection_queries.from_run(origin, {**config, "test_with": "best"})


def build_untrained(config: Mapping[str, Any], preprocessors: Mapping[str, Preprocessor] | None = None) -> RetRetriever:
    """Build the model of a training config with random weights; pretrained backbones are not loaded.

    Args:
        config: the resolved config of the run.
        preprocessors: `tokenizer` and `image_transform` of a checkpoint, which replace those of the config.
    """
    model, backbone = dict(config["model"]), dict(config["model"]["backbone"])
    if "pretrained" in backbone:
        backbone["pretrained"] = None
    if not preprocessors:
        return build({**model, "backbone": backbone})
    del model["backbone"]
    # The config's own preprocessors are not built: their files may no longer exist.
    arguments = {kind: part for kind, part in preprocessors.items() if backbone.pop(kind, None) is not None}
    retriever: RetRetriever = build(model, backbone=build(backbone, **arguments))
    for tower in (retriever.query_tower, retriever.passage_tower):
        for kind, part in preprocessors.items():
            setattr(tower, kind, part)
    return retriever


def _read_with_record(file: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(file)
    if RECORD not in checkpoint:
        raise UserError(
            f"{file}: expected a checkpoint of ret-train, but the key {RECORD} is missing",
            code="checkpoint-without-record",
            path=str(file),
        )
    return checkpoint


def _read_test_metrics(file: Path, step: int) -> dict[str, float]:
    """Read the test metrics of a checkpoint's run; return an empty dict if another checkpoint was tested."""
    run = file.resolve().parent.parent
    return read_json(run / METRICS_FILE) if read_json(run / ORIGIN_FILE).get("tested_step") == step else {}
