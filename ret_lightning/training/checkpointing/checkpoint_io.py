"""Write and read checkpoint files; frozen weights are stored once per folder.

    checkpoints/best.ckpt, last.ckpt, ...      the state that a run needs to resume, without the frozen weights
    checkpoints/best.safetensors, ...          the trained weights only, under their names in RetRetriever
    checkpoints/frozen.safetensors             the frozen weights

Every file is written under a temporary name and renamed when it is complete, so a run that is killed while writing
keeps the previous checkpoint. A kill between the two files of a checkpoint can leave them at different steps;
`repair_checkpoints` then rewrites the weights file.
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
from ret_lightning.models.checkpoint.fingerprint import update_with_weights
from ret_lightning.runtime.atomic_files import remove_unfinished, whole_file

log = logging.getLogger(__name__)

FROZEN_FILE = "frozen.safetensors"
FROZEN = "frozen"  # key of a checkpoint: the names to separate when saving, the record of their file when stored
RETRIEVER_PREFIX = "retriever."


# Minimum share of frozen weights for a separate file. Below it, a self-contained checkpoint is preferred, for example when
# only the unused last block of a trained backbone is frozen.
MIN_FROZEN_SHARE = 0.1


class RunCheckpointIO(CheckpointIO):
    """Lightning plugin that writes and reads the checkpoints of a run.

    If the entry `frozen` of a checkpoint lists names of its `state_dict`, these weights are written to a separate file
    in the same folder. Reading the checkpoint restores them.

    Args:
        on_saved: function to call after each checkpoint is written.
    """

    def __init__(self, on_saved: Callable[[], None] = lambda: None) -> None:
        self.on_saved = on_saved
        self._identity: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint, and its trained weights to a second file.

        Args:
            checkpoint: the content of the checkpoint.
            path: the file to write.
            storage_options: ignored.

        Raises:
            UserError: if a file cannot be written; an earlier checkpoint of the same name is unchanged.
        """
        path = Path(path)
        state: dict[str, Tensor] = checkpoint["state_dict"]
        frozen = {name: state[name] for name in checkpoint.get(FROZEN, ())}
        with _report_write_errors(path):
            if _count_parameters(frozen) > MIN_FROZEN_SHARE * _count_parameters(state):
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
        """Read a checkpoint with its frozen weights to the CPU.

        Args:
            path: the checkpoint.
            map_location: ignored.
            weights_only: ignored; reading never executes code.

        Raises:
            UserError: if the file is not a complete checkpoint, or its frozen weights are missing.
        """
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its weights file."""
        for file in (Path(path), Path(path).with_suffix(".safetensors")):
            file.unlink(missing_ok=True)

    def _write_frozen(self, folder: Path, frozen: Mapping[str, Tensor]) -> dict[str, Any]:
        """Write the frozen weights unless the folder already contains them; return the record for the checkpoint."""
        if self._identity is None:  # constant during a run, and slow to compute for large models
            self._identity = _identity(frozen)
        file = folder / FROZEN_FILE
        if not file.is_file() or _read_metadata(file).get("identity") != self._identity:
            _write_weights(file, frozen, {"identity": self._identity})
        stored = _stored_names(frozen)
        names = {name.removeprefix(RETRIEVER_PREFIX): of.removeprefix(RETRIEVER_PREFIX) for name, of in stored.items()}
        return {"file": FROZEN_FILE, "identity": self._identity, "names": names}


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint with all its weights to the CPU.

    Args:
        file: the checkpoint.

    Returns:
        The content of the checkpoint.

    Raises:
        UserError: if the file is not a complete checkpoint, or its frozen weights are missing.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    checkpoint = open_checkpoint(file)
    frozen = _find_frozen_file(file, checkpoint)
    if frozen is not None:
        try:
            weights = load_file(frozen)
            names = checkpoint[FROZEN]["names"]
            checkpoint["state_dict"] |= {RETRIEVER_PREFIX + name: weights[of] for name, of in names.items()}
        except (SafetensorError, KeyError) as error:
            reason = f"tensor {error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise _frozen_unreadable(frozen, reason) from error
    return checkpoint


def read_position(file: Path) -> tuple[int, int]:
    """Read the position of a checkpoint without reading its weights.

    Args:
        file: the checkpoint.

    Returns:
        The number of optimizer steps and the 0-based epoch.

    Raises:
        UserError: if the file is not a complete checkpoint, or its frozen weights are missing.
    """
    checkpoint = open_checkpoint(file)
    _find_frozen_file(file, checkpoint)
    return checkpoint["global_step"], checkpoint["epoch"]


def read_step(file: Path) -> int:
    """Read the number of optimizer steps of a checkpoint without reading its weights.

    Args:
        file: the checkpoint.

    Raises:
        UserError: if the file is not a complete checkpoint.
    """
    return open_checkpoint(file)["global_step"]


def open_checkpoint(file: Path) -> dict[str, Any]:
    """Open a checkpoint without its frozen weights; tensors are memory-mapped and read on first use.

    Args:
        file: the checkpoint.

    Returns:
        The content of the checkpoint.

    Raises:
        UserError: if the file is missing, incomplete, or not a checkpoint of ret-train.
    """
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; set the path of a checkpoint", code="checkpoint-missing", path=str(file)
        )
    if not zipfile.is_zipfile(file):  # torch.save writes zip files, whose directory comes last
        raise UserError(
            f"{file}: not a checkpoint of ret-train, or incomplete; copy it again",
            code="checkpoint-incomplete",
            path=str(file),
        )
    try:
        # mmap: unused tensors, such as the optimizer state, are not read from disk.
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        checkpoint["state_dict"], checkpoint["epoch"], checkpoint["global_step"]
    except KeyError as error:
        raise UserError(
            f"{file}: expected a checkpoint of ret-train, but the key {error.args[0]} is missing",
            code="checkpoint-foreign",
            path=str(file),
            key=error.args[0],
        ) from error
    except Exception as error:  # unpickling can raise any exception
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{file}: not a complete checkpoint of ret-train ({reason[0]})",
            code="checkpoint-unreadable",
            path=str(file),
        ) from error
    return checkpoint


def _find_frozen_file(file: Path, checkpoint: dict[str, Any]) -> Path | None:
    """Return the file of the frozen weights of a checkpoint; None if it has no separate frozen weights.

    Raises:
        UserError: if the file is missing, cannot be read, or belongs to another run.
    """
    record = checkpoint.get(FROZEN)
    if not isinstance(record, dict):  # a list of names: written without RunCheckpointIO, with all weights
        return None
    frozen = file.resolve().parent / record["file"]
    if not frozen.is_file():
        raise UserError(
            f"{frozen}: no such file; it contains the frozen weights of {file.name}, keep the two files together",
            code="frozen-weights-missing",
            path=str(frozen),
        )
    identity = _read_metadata(frozen).get("identity")
    if identity is None:
        raise _frozen_unreadable(frozen, "truncated, or not written by ret-train")
    if identity != record["identity"]:
        raise UserError(
            f"{frozen}: contains the frozen weights of another run than {file.name}; restore the file of this run",
            code="frozen-weights-differ",
            path=str(frozen),
        )
    return frozen


def _frozen_unreadable(frozen: Path, reason: str) -> UserError:
    return UserError(
        f"{frozen}: the frozen weights cannot be read ({reason}); restore the file from a copy of the run",
        code="frozen-weights-unreadable",
        path=str(frozen),
        reason=reason,
    )


def repair_checkpoints(folder: Path) -> None:
    """Make a folder of checkpoints consistent after a kill; no other process may write to it.

    Removes temporary files, rewrites weights files that are missing or of another step than their checkpoint, and
    removes weights files without a checkpoint.

    Args:
        folder: the folder of the checkpoints.
    """
    remove_unfinished(folder)
    for file in sorted(folder.glob("*.ckpt")):
        try:
            checkpoint = open_checkpoint(file)
        except UserError:
            continue  # reported when a checkpoint is selected
        weights, expected = file.with_suffix(".safetensors"), _weights_metadata(file, checkpoint)
        if file.is_symlink() or expected.items() <= _read_metadata(weights).items():
            continue
        log.info("%s: missing or of another step; rewritten from %s", weights, file.name)
        _write_weights(weights, checkpoint["state_dict"], expected)
    for weights in folder.glob("*.safetensors"):
        if "checkpoint" in _read_metadata(weights) and not weights.with_suffix(".ckpt").exists():
            weights.unlink()


def rename_checkpoint(file: Path, name: str, entries: Mapping[str, Any]) -> Path:
    """Rename a checkpoint within its folder and add entries to it.

    Args:
        file: the checkpoint.
        name: the new file name.
        entries: entries to add.

    Returns:
        The new file. The earlier file and its weights file are removed.
    """
    renamed, checkpoint = file.with_name(name), {**open_checkpoint(file), **entries}
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
    """Map each name to the first name that shares its memory, since tied weights are stored once."""
    first: dict[tuple[Any, ...], str] = {}
    return {
        name: first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype), name)
        if tensor.numel()
        else name
        for name, tensor in weights.items()
    }


def _count_parameters(weights: Mapping[str, Tensor]) -> int:
    return sum(weights[name].numel() for name in set(_stored_names(weights).values()))


def _identity(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    update_with_weights(digest, {name: weights[name] for name in _stored_names(weights).values()})
    return digest.hexdigest()


def _read_metadata(file: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as content:
            return content.metadata() or {}
    except (SafetensorError, OSError):
        return {}  # incomplete: the file is rewritten, or reported when it is read


@contextmanager
def _report_write_errors(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: cannot write the checkpoint: {reason}",
            code="checkpoint-not-writable",
            path=str(path),
            reason=reason,
        ) from error
