"""Store the random states of all ranks in checkpoints, so that a resumed run repeats the uninterrupted one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

RANDOM_STATES = "random_states"


class RandomStates(Callback):
    """Stores and restores the random states of torch (CPU and GPU), NumPy and Python."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the states of all ranks; Lightning calls this on every rank, and rank 0 writes the file."""
        states: list[Any] = [None] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, get_random_state(pl_module.device))
        else:
            states[0] = get_random_state(pl_module.device)
        checkpoint[RANDOM_STATES] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the state of this rank until the first batch.

        If the run has more ranks than the checkpoint, several ranks use the same state, except for that of their GPUs, which
        `seed_gpu` has set.
        """
        states = checkpoint.get(RANDOM_STATES)
        if states:
            rank = trainer.global_rank
            self._restored = states[rank] if rank < len(states) else {**states[rank % len(states)], "cuda": None}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore the state; random numbers that were generated during setup then have no effect."""
        if self._restored is not None:
            set_random_state(self._restored, pl_module.device)
            self._restored = None


def seed_gpu(device: torch.device, rank: int) -> None:
    """Seed the generator of this rank's GPU, so that each rank has its own dropout masks.

    Lightning seeds all ranks equally. Here the seed of a GPU is derived from that seed and the rank. Rank 0 keeps the seed of
    Lightning, so a run on one GPU is unaffected.

    Args:
        device: the device of the model; a CPU is not seeded.
        rank: global rank of this process.
    """
    if device.type == "cuda" and rank > 0:
        seed = int(np.random.SeedSequence([torch.initial_seed(), rank]).generate_state(1, np.uint64)[0]) >> 1
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def get_random_state(device: torch.device) -> dict[str, Any]:
    """Return the random states of this process.

    Args:
        device: the device of the model; a GPU adds its state.

    Returns:
        Plain containers and tensors, since checkpoints are read with `weights_only`.
    """
    version, words, gauss = random.getstate()
    state: Any = np.random.get_state()  # noqa: NPY002, libraries still use the global state
    name, keys, position, has_gauss, cached = state
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore random states.

    Args:
        state: states as returned by `get_random_state`.
        device: the device of the model.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
