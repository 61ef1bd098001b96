"""Which model made an index: where its checkpoint is, and a fingerprint by which another one is told apart."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ret_lightning.errors import ConfigError, DataError, UserError
from ret_lightning.models import RetRetriever
from ret_lightning.models.published_names import published_state
from ret_lightning.models.published_writing import architecture

PREPARATION = (("tokenizer", ("max_length",)), ("image_transform", ("size", "mean", "std")))


@dataclass(frozen=True)
class ModelIdentity:
    """A model, as an index remembers it.

    Attributes:
        source: the checkpoint: an absolute path, or a hub id.
        kind: `training` (of ret-train) or `published` (layout).
        fingerprint: see `fingerprint`.
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
                "is now"
            )
        if moved_to is None and self.kind == "published":
            retriever = RetRetriever.from_pretrained(self.source)  # without Lightning, which takes seconds
            found = fingerprint(retriever)
        else:
            retriever, model = open_model(moved_to or self.source)
            found = model.fingerprint
        if found != self.fingerprint:
            raise DataError(
                f"the index is of another checkpoint than {moved_to or self.source}: made with {self.source} of fingerprint "
                f"{self.fingerprint}, and this one's is {found}; give the checkpoint that made it, or index the passages again"
            )
        return retriever.to(device)


def open_model(checkpoint: str) -> tuple[RetRetriever, ModelIdentity]:
    """A model and what it will be known by.

    Args:
        checkpoint: a training checkpoint, a run folder, a folder in the published layout, or a hub id.

    Raises:
        UserError: if it is none of these.
    """
    from ret_lightning.training.trained import open_retriever, training_checkpoint  # brings Lightning

    file = training_checkpoint(checkpoint)
    retriever = open_retriever(file or checkpoint)
    path = (file or Path(checkpoint).expanduser()).absolute()
    source = str(path) if path.exists() else checkpoint
    return retriever, ModelIdentity(source, "published" if file is None else "training", fingerprint(retriever))


def fingerprint(retriever: RetRetriever) -> str:
    """32 hexadecimal digits that change with any weight, with the architecture, and with how texts and images are prepared.

    A training checkpoint and what ret-export makes of it have the same one.
    """
    digest = hashlib.blake2b(digest_size=16)
    settings: dict[str, Any] = {
        f"{side}.{part}.{name}": getattr(getattr(tower, part), name, None)
        for side, tower in (("query", retriever.query_tower), ("passage", retriever.passage_tower))
        for part, names in PREPARATION
        for name in names
    }
    try:
        settings |= architecture(retriever)
        weights = published_state(retriever)
    except ConfigError:  # a backbone that the published layout has no place for
        weights = retriever.state_dict()
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
