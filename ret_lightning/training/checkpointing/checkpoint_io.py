"""Checkpoint files: each is complete or absent, frozen weights are written once per folder.

    checkpoints/best.ckpt, last.ckpt, ...      what a run needs to resume, without the frozen weights
    checkpoints/best.safetensors, ...          the trained weights alone, under their names in RetRetriever
    checkpoints/frozen.safetensors             the frozen weights, once

A checkpoint is replaced by renaming a finished file over it, so a run that is killed while writing keeps the earlier one.
`repair_checkpoints` makes the second kind agree with the first after a kill between the two.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from ret_lightning.errors import UserError
from ret_lightning.runtime.atomic_files import remove_unfinished, whole_file

log = logging.getLogger(__name__)

FROZEN_FILE = "frozen.safetensors"
FROZEN = "frozen"  # the key in a checkpoint: names on the way in, where they are on the way out
RETRIEVER_PREFIX = "retriever."


# Share of the weights above which the frozen ones get a file of their own. Below, as where the last block of a trained
# backbone is not read, a checkpoint that stands alone is worth more.
WORTH_A_FILE = 0.1


class RunCheckpointIO(CheckpointIO):
    """How the Trainer writes and reads checkpoints.

    A checkpoint whose entry `frozen` lists names of its `state_dict` is written without these; they go into one file in the
    same folder, and reading puts them back.

    Args:
        on_saved: called after each checkpoint is written.
    """

    def __init__(self, on_saved: Callable[[], None] = lambda: None) -> None:
        self.on_saved = on_saved
        self._identity: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint and, in a second file, the trained weights alone.

        Raises:
            UserError: if they cannot be written; an earlier checkpoint of that name is unchanged.
        """
        path = Path(path)
        state: dict[str, Tensor] = checkpoint["state_dict"]
        frozen = {name: state[name] for name in checkpoint.get(FROZEN, ())}
        with _reported(path):
            if _count(frozen) > WORTH_A_FILE * _count(state):
                state = {name: tensor for name, tensor in state.items() if name not in frozen}
                record = self._write_frozen(path.parent, frozen)
                checkpoint = {**checkpoint, "state_dict": state, FROZEN: record}
            with whole_file(path) as unfinished:
                torch.save(checkpoint, unfinished)
            _write_weights(path.with_suffix(".safetensors"), state, _weights_metadata(path, checkpoint))
        self.on_saved()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint with its frozen weights, on the CPU; see `read_checkpoint`."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint and its weights file."""
        for file in (Path(path), Path(path).with_suffix(".safetensors")):
            file.unlink(missing_ok=True)

    def _write_frozen(self, folder: Path, frozen: Mapping[str, Tensor]) -> dict[str, Any]:
        """Where the frozen weights are; they are written unless the folder has them."""
        if self._identity is None:  # they do not change, and hashing billions of them takes seconds
            self._identity = _identity(frozen)
        file = folder / FROZEN_FILE
        if not file.is_file() or _metadata(file).get("identity") != self._identity:
            _write_weights(file, frozen, {"identity": self._identity})
        stored = _stored_names(frozen)
        names = {name.removeprefix(RETRIEVER_PREFIX): of.removeprefix(RETRIEVER_PREFIX) for name, of in stored.items()}
        return {"file": FROZEN_FILE, "identity": self._identity, "names": names}


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint with all its weights, on the CPU.

    Raises:
        UserError: if the file is torn or no checkpoint, or the frozen weights are not beside it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    checkpoint = stored_checkpoint(file)
    frozen = _frozen_file(file, checkpoint)
    if frozen is not None:
        try:
            weights = load_file(frozen)
            names = checkpoint[FROZEN]["names"]
            checkpoint["state_dict"] |= {RETRIEVER_PREFIX + name: weights[of] for name, of in names.items()}
        except (SafetensorError, KeyError) as error:
            raise UserError(
                f"{frozen}: no complete file of weights ({error})", code="frozen-weights-unreadable", path=str(frozen)
            ) from error
    return checkpoint


def whole_position(file: Path) -> tuple[int, int]:
    """Optimiser steps and epoch of a checkpoint that `read_checkpoint` can read; no weights are read.

    Raises:
        UserError: as `read_checkpoint`.
    """
    checkpoint = stored_checkpoint(file)
    _frozen_file(file, checkpoint)
    return checkpoint["global_step"], checkpoint["epoch"]


def stored_step(file: Path) -> int:
    """How many optimiser steps a checkpoint has behind it; no weights are read.

    Raises:
        UserError: if the file is torn or no checkpoint.
    """
    return stored_checkpoint(file)["global_step"]


def stored_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint as its file holds it: without frozen weights, tensors mapped from the file and not read until used.

    Raises:
        UserError: if the file is missing, incomplete, or not a checkpoint of ret-train.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file", code="checkpoint-missing", path=str(file))
    if not zipfile.is_zipfile(file):  # what torch.save writes; its table of contents comes last
        raise UserError(
            f"{file}: no checkpoint of ret-train, or an incomplete one", code="checkpoint-incomplete", path=str(file)
        )
    try:
        # mmap: what is not asked for, such as the optimiser's state, is not read from the disk.
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        checkpoint["state_dict"], checkpoint["epoch"], checkpoint["global_step"]
    except KeyError as error:
        raise UserError(
            f"{file}: no checkpoint of ret-train (it has no {error.args[0]})",
            code="checkpoint-foreign",
            path=str(file),
            key=error.args[0],
        ) from error
    except Exception as error:  # unpickling raises what it likes
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{file}: no complete checkpoint of ret-train ({reason[0]})", code="checkpoint-unreadable", path=str(file)
        ) from error
    return checkpoint


def _frozen_file(file: Path, checkpoint: dict[str, Any]) -> Path | None:
    """The file of a checkpoint's frozen weights, which is there and whole; None where it has none."""
    record = checkpoint.get(FROZEN)
    if not isinstance(record, dict):  # a list of names: written without RunCheckpointIO, nothing is missing
        return None
    frozen = file.resolve().parent / record["file"]
    if not frozen.is_file():
        raise UserError(
            f"{frozen}: no such file; it holds the frozen weights of {file.name}: keep the two together",
            code="frozen-weights-missing",
            path=str(frozen),
        )
    if _metadata(frozen).get("identity") != record["identity"]:
        raise UserError(
            f"{frozen}: holds the frozen weights of another run than {file.name}",
            code="frozen-weights-differ",
            path=str(frozen),
        )
    return frozen


def repair_checkpoints(folder: Path) -> None:
    """Make a folder of checkpoints consistent after a kill; nothing may be writing there.

    Removes temporary files, writes the weights file of each checkpoint that lacks it or has one of another step, and removes
    weights files whose checkpoint is gone.
    """
    remove_unfinished(folder)
    for file in sorted(folder.glob("*.ckpt")):
        try:
            checkpoint = stored_checkpoint(file)
        except UserError:
            continue  # reported where a checkpoint is chosen
        weights, expected = file.with_suffix(".safetensors"), _weights_metadata(file, checkpoint)
        if file.is_symlink() or expected.items() <= _metadata(weights).items():
            continue
        log.info("%s: written again from %s, since it is missing or of another step", weights, file.name)
        _write_weights(weights, checkpoint["state_dict"], expected)
    for weights in folder.glob("*.safetensors"):
        if "checkpoint" in _metadata(weights) and not weights.with_suffix(".ckpt").exists():
            weights.unlink()


def rename_checkpoint(file: Path, name: str, entries: Mapping[str, Any]) -> Path:
    """Give a checkpoint another name in its folder, and further entries.

    Args:
        file: the checkpoint.
        name: the new file name.
        entries: added to its content.

    Returns:
        The new file; the former one and its weights file are gone.
    """
    renamed, checkpoint = file.with_name(name), {**stored_checkpoint(file), **entries}
    with whole_file(renamed) as unfinished:
        torch.save(checkpoint, unfinished)
    _write_weights(
        renamed.with_suffix(".safetensors"), checkpoint["state_dict"], _weights_metadata(renamed, checkpoint)
    )
    for former in (file, file.with_suffix(".safetensors")):
        former.unlink(missing_ok=True)
    return renamed


def _weights_metadata(file: Path, checkpoint: Mapping[str, Any]) -> dict[str, str]:
    return {"checkpoint": file.name, "step": str(checkpoint["global_step"]), "epoch": str(checkpoint["epoch"])}


def _write_weights(file: Path, weights: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    stored = set(_stored_names(weights).values())
    own = {n.removeprefix(RETRIEVER_PREFIX): weights[n].detach().cpu().contiguous() for n in weights if n in stored}
    with whole_file(file) as unfinished:
        save_file(own, unfinished, {"format": "pt", **metadata})


def _stored_names(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Each name to the first of the names that share its memory: tied weights are written once."""
    first: dict[tuple, str] = {}
    return {
        name: first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype), name)
        if tensor.numel()
        else name
        for name, tensor in weights.items()
    }


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(weights[name].numel() for name in set(_stored_names(weights).values()))


def _identity(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    stored = set(_stored_names(weights).values())
    for name in sorted(stored):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as content:
            return content.metadata() or {}
    except (SafetensorError, OSError):
        return {}  # incomplete: it is written again, or reported by whoever reads it


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: the checkpoint cannot be written: {reason}",
            code="checkpoint-not-writable",
            path=str(path),
            reason=reason,
        ) from error
