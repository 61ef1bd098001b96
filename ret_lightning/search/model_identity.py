"""The model of an index: the path of its checkpoint, and a fingerprint that identifies its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ret_lightning.errors import ConfigError, DataError, UserError
from ret_lightning.models import RetRetriever
from ret_lightning.models.checkpoint.fingerprint import fingerprint, fingerprint_as
from ret_lightning.models.precision import device_named


@dataclass(frozen=True)
class ModelIdentity:
    """The identity of a model, as stored in an index.

    Attributes:
        source: absolute path or hub id of the checkpoint.
        kind: `training` (written by ret-train) or `published` (layout).
        fingerprint: fingerprint of the weights, see `models.checkpoint.fingerprint`.
    """

    source: str
    kind: Literal["training", "published"]
    fingerprint: str

    def open(self, checkpoint: str | None = None, device: str | torch.device = "cpu") -> RetRetriever:
        """Open the model.

        Args:
            checkpoint: current path of its checkpoint. None: `source`.
            device: device to move the model to.

        Raises:
            UserError: if there is no checkpoint or it contains another model.
        """
        if checkpoint is None and Path(self.source).is_absolute() and not Path(self.source).exists():
            raise UserError(
                f"checkpoint {self.source} of the index does not exist; set checkpoint to its current path",
                code="index-checkpoint-missing",
                path=self.source,
            )
        if checkpoint is None and self.kind == "published":
            retriever = RetRetriever.from_pretrained(self.source)  # does not import Lightning
        else:
            retriever, _ = _open_checkpoint(checkpoint or self.source)
        found = fingerprint_as(self.fingerprint, retriever)
        if found != self.fingerprint:
            raise DataError(
                f"checkpoint {checkpoint or self.source}: expected fingerprint {self.fingerprint} of the index (checkpoint "
                f"{self.source}), got {found}; use the checkpoint of the index, or index the passages again",
                code="index-other-checkpoint",
                path=checkpoint or self.source,
                found=found,
                expected=self.fingerprint,
            )
        return retriever.to(device)


def open_model(checkpoint: str) -> tuple[RetRetriever, ModelIdentity]:
    """Open a model and determine its identity.

    Args:
        checkpoint: a training checkpoint, a run folder, a folder in the published layout, or a hub id.

    Raises:
        UserError: if the checkpoint is none of these.
    """
    retriever, file = _open_checkpoint(checkpoint)
    path = (file or Path(checkpoint).expanduser()).absolute()
    source = str(path) if path.exists() else checkpoint
    return retriever, ModelIdentity(source, "published" if file is None else "training", fingerprint(retriever))


def resolve_model(
    checkpoint: str | None, device: str | None, known: ModelIdentity | None
) -> tuple[RetRetriever, ModelIdentity]:
    """Open the model that encodes: the model of an existing index, or that of `checkpoint` for a new index.

    Args:
        checkpoint: a training checkpoint, a run folder, a folder in the published layout, or a hub id. None: the checkpoint
            of `known`.
        device: name of the device. None: a GPU if there is one.
        known: model of the existing index; None for a new index.

    Returns:
        The model on the device, and its identity.

    Raises:
        ConfigError: if there is neither a checkpoint nor a known model, or the device does not exist.
        UserError: if the checkpoint cannot be opened or contains another model than `known`.
    """
    target_device = device_named(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if known is not None:
        return known.open(checkpoint, target_device), known
    if checkpoint is None:
        raise ConfigError(
            "checkpoint: required for a new index; set checkpoint=<run folder, .ckpt, published folder or hub id>",
            code="checkpoint-not-given",
        )
    retriever, model = open_model(checkpoint)
    return retriever.to(target_device), model


def _open_checkpoint(checkpoint: str) -> tuple[RetRetriever, Path | None]:
    """Open a model; return it with the file of its training checkpoint, None for the published layout."""
    from ret_lightning.training.checkpointing.load import find_training_checkpoint, load_retriever  # imports Lightning

    file = find_training_checkpoint(checkpoint)
    return (RetRetriever.from_pretrained(checkpoint) if file is None else load_retriever(file)), file
