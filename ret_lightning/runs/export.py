"""From a training checkpoint to a folder in the published layout, with a model card."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import OmegaConf

from ret_lightning._version import __version__
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.models.checkpoint.files import CONFIG_FILE, check_shard_size, storable_config
from ret_lightning.models.checkpoint.hub import CARD_FILE
from ret_lightning.models.checkpoint.model_card import model_card
from ret_lightning.runtime.atomic_files import write_text
from ret_lightning.runtime.run_layout import CHECKPOINTS_FOLDER, ORIGIN_FILE, write_json
from ret_lightning.training.checkpointing import selection_queries
from ret_lightning.training.checkpointing.load import (
    TrainedModel,
    find_training_checkpoint,
    load_trained_model,
    read_selected_on,
)

log = logging.getLogger(__name__)


def export(
    checkpoint: str | Path, output: str | Path, overwrite: bool = False, max_shard_size: int | str = "5GB"
) -> None:
    """Writes the model of a training checkpoint as `RetRetriever.from_pretrained` and the published code read it.

    `origin.json` records where the weights come from, for evaluations of the folder.

    Args:
        checkpoint: a training checkpoint, or a run folder: its best one, or the last where none was scored.
        output: the folder to write.
        overwrite: whether a checkpoint that stands there may go.
        max_shard_size: see `RetRetriever.save_pretrained`.

    Raises:
        UserError: if there is no such checkpoint, a part of the model cannot be stored, or the folder holds one already.
    """
    check_shard_size(max_shard_size)
    if not str(output):
        raise ConfigError("output is empty; name the folder to write", code="export-output-empty")
    output, file = Path(output), find_training_checkpoint(checkpoint)
    if file is None:
        raise ConfigError(
            f"checkpoint={checkpoint}: no training checkpoint and no run folder with one in {CHECKPOINTS_FOLDER}/",
            code="export-no-checkpoint",
            found=str(checkpoint),
        )
    if output.is_file():
        raise ConfigError(
            f"output={output}: a file of that name exists; name a folder",
            code="export-output-is-file",
            path=str(output),
        )
    there = [name for name in (CONFIG_FILE, CARD_FILE) if (output / name).exists()]
    if there and not overwrite:
        raise ConfigError(
            f"output={output}: holds a {there[0]} already; choose another folder, or set overwrite=true",
            code="export-output-taken",
            path=str(output),
            found=there[0],
        )
    trained = load_trained_model(file)
    storable_config(trained.retriever)  # a refusal leaves no card behind
    # The weights come last: a folder that has them is whole.
    chosen = read_selected_on(file)
    origin = {
        "checkpoint": str(file),
        "step": trained.step,
        selection_queries.SELECTED_ON: chosen,
        "version": __version__,
    }
    try:
        write_json(output / ORIGIN_FILE, origin)
        write_text(output / CARD_FILE, _card(trained, output.resolve().name, chosen))
    except OSError as error:
        raise UserError(
            f"output={output}: cannot be written ({error.strerror})", code="export-not-writable", path=str(output)
        ) from error
    trained.retriever.save_pretrained(output, max_shard_size)
    log.info("%s: the model of %s, step %d", output, file, trained.step)


def _card(trained: TrainedModel, name: str, chosen: str) -> str:
    config = trained.config
    origin = {
        "checkpoint": trained.file,
        "epoch": trained.epoch,
        "step": trained.step,
        "seed": config["seed"],
        "data": config["data"]["_target_"].rpartition(".")[2],
        "checkpoint choice": selection_queries.describe(chosen),
        "ret_lightning": f"{trained.version}, exported with {__version__}",
    }
    notes = [] if trained.test else ["The run has no test metrics of these weights."]
    return model_card(
        trained.retriever,
        name,
        results=[("Results on the test split", trained.test), ("Results on the validation split", trained.validation)],
        origin=origin,
        notes=notes,
        training_config=OmegaConf.to_yaml(OmegaConf.create(config)),
    )
