"""The random states of all ranks in every checkpoint, so that a resumed run repeats what an undisturbed one would draw."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

KEY = "random_states"


class RandomStates(Callback):
    """Stores and restores the states of torch (CPU and GPU), NumPy and Python."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Gathers the states of all ranks; Lightning calls it on every rank, though only the first one writes."""
        states: list[Any] = [None] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, random_state(pl_module.device))
        else:
            states[0] = random_state(pl_module.device)
        checkpoint[KEY] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps this rank's state for the first batch; with more ranks than before, several take the same one."""
        states = checkpoint.get(KEY)
        if states:
            self._restored = states[trainer.global_rank % len(states)]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restores the state as late as possible, so that random numbers drawn during setup have no effect."""
        if self._restored is not None:
            set_random_state(self._restored, pl_module.device)
            self._restored = None


def random_state(device: torch.device) -> dict[str, Any]:
    """This process's states in plain containers and tensors, since checkpoints are read with `weights_only`."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002, what libraries still draw from
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Sets what `random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
