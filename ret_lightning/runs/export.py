"""Export of a training checkpoint to a folder in the published layout, with a model card."""

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
    """Write the model of a training checkpoint in the layout of `RetRetriever.from_pretrained` and the published code.

    `origin.json` records the source of the weights for later evaluations of the folder.

    Args:
        checkpoint: a training checkpoint or a run folder. Of a run folder, the best checkpoint is exported, or the last one
            if none has a score.
        output: folder to write.
        overwrite: whether an existing checkpoint in `output` may be overwritten.
        max_shard_size: maximum size of a weight file, in bytes or as a string such as "5GB".

    Raises:
        UserError: if the checkpoint does not exist, a part of the model cannot be stored, or `output` already contains a
            checkpoint.
    """
    check_shard_size(max_shard_size)
    if not str(output):
        raise ConfigError("output is empty; set a folder", code="export-output-empty")
    output, file = Path(output), find_training_checkpoint(checkpoint)
    if file is None:
        raise ConfigError(
            f"checkpoint={checkpoint}: expected a training checkpoint, or a run folder with one in {CHECKPOINTS_FOLDER}/",
            code="export-no-checkpoint",
            found=str(checkpoint),
        )
    if output.is_file():
        raise ConfigError(
            f"output={output}: expected a folder, but a file of this name exists",
            code="export-output-is-file",
            path=str(output),
        )
    existing = [name for name in (CONFIG_FILE, CARD_FILE) if (output / name).exists()]
    if existing and not overwrite:
        raise ConfigError(
            f"output={output}: already contains {existing[0]}; choose another folder or set overwrite=true",
            code="export-output-taken",
            path=str(output),
            found=existing[0],
        )
    trained = load_trained_model(file)
    storable_config(trained.retriever)  # raises before a model card is written
    # The weights are written last, so that a folder with weights is complete.
    chosen = read_selected_on(file)
    origin = {
        "checkpoint": str(file),
        "step": trained.step,
        selection_queries.SELECTED_ON: chosen,
        "version": __version__,
    }
    try:
        write_json(output / ORIGIN_FILE, origin)
        write_text(output / CARD_FILE, _build_card(trained, output.resolve().name, chosen))
    except OSError as error:
        raise UserError(
            f"output={output}: cannot write ({error.strerror}); choose a writable folder",
            code="export-not-writable",
            path=str(output),
        ) from error
    trained.retriever.save_pretrained(output, max_shard_size)
    log.info("exported %s, step %d, to %s", file, trained.step, output)


def _build_card(trained: TrainedModel, name: str, chosen: str) -> str:
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
    notes = [] if trained.test else ["The run has no test metrics for these weights."]
    return model_card(
        trained.retriever,
        name,
        results=[("Results on the test split", trained.test), ("Results on the validation split", trained.validation)],
        origin=origin,
        notes=notes,
        training_config=OmegaConf.to_yaml(OmegaConf.create(config)),
    )
