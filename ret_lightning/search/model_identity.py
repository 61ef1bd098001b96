"""Which model made an index: where its checkpoint is, and a fingerprint by which another one is told apart."""

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
    """A model, as an index remembers it.

    Attributes:
        source: the checkpoint: an absolute path, or a hub id.
        kind: `training` (of ret-train) or `published` (layout).
        fingerprint: see `models.checkpoint.fingerprint`.
    """

    source: str
    kind: Literal["training", "published"]
    fingerprint: str

    def open(self, moved_to: str | None = None, device: str | torch.device = "cpu") -> RetRetriever:
        """The same model again.

        Args:
            moved_to: where its checkpoint is now; None: where it was.
            device: where it goes.

        Raises:
            UserError: if there is no checkpoint, or it is of another model.
        """
        if moved_to is None and Path(self.source).is_absolute() and not Path(self.source).exists():
            raise UserError(
                f"the index was made with checkpoint {self.source}, which is not there any more; checkpoint=... tells where it "
                "is now",
                code="index-checkpoint-missing",
                path=self.source,
            )
        if moved_to is None and self.kind == "published":
            retriever = RetRetriever.from_pretrained(self.source)  # without Lightning, which takes seconds
        else:
            retriever, _ = _opened(moved_to or self.source)
        found = fingerprint_as(self.fingerprint, retriever)
        if found != self.fingerprint:
            raise DataError(
                f"the index is of another checkpoint than {moved_to or self.source}: made with {self.source} of fingerprint "
                f"{self.fingerprint}, and this one's is {found}; give the checkpoint that made it, or index the passages again",
                code="index-other-checkpoint",
                path=moved_to or self.source,
                found=found,
                expected=self.fingerprint,
            )
        return retriever.to(device)


def open_model(checkpoint: str) -> tuple[RetRetriever, ModelIdentity]:
    """A model and what it will be known by.

    Args:
        checkpoint: a training checkpoint, a run folder, a folder in the published layout, or a hub id.

    Raises:
        UserError: if it is none of these.
    """
    retriever, file = _opened(checkpoint)
    path = (file or Path(checkpoint).expanduser()).absolute()
    source = str(path) if path.exists() else checkpoint
    return retriever, ModelIdentity(source, "published" if file is None else "training", fingerprint(retriever))


def model_for(
    checkpoint: str | None, device: str | None, known: ModelIdentity | None
) -> tuple[RetRetriever, ModelIdentity]:
    """The model that encodes, on its device: of `checkpoint`, or else that of the index which is there already.

    Args:
        checkpoint: as in `open_model`; None: that of `known`.
        device: its name; None: a GPU where there is one.
        known: the model of an index; None for a new one.

    Raises:
        ConfigError: if there is neither a checkpoint nor a known model, or no such device.
        UserError: if the checkpoint cannot be opened, or is of another model than the known one.
    """
    place = device_named(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if known is not None:
        return known.open(checkpoint, place), known
    if checkpoint is None:
        raise ConfigError(
            "checkpoint: a new index needs one; checkpoint=<run folder, .ckpt, published folder or hub id>",
            code="checkpoint-not-given",
        )
    retriever, model = open_model(checkpoint)
    return retriever.to(place), model


def _opened(checkpoint: str) -> tuple[RetRetriever, Path | None]:
    """A model, and the file of a training checkpoint."""
    from ret_lightning.training.checkpointing.load import find_training_checkpoint, load_retriever  # brings Lightning

    file = find_training_checkpoint(checkpoint)
    return (RetRetriever.from_pretrained(checkpoint) if file is None else load_retriever(file)), file
