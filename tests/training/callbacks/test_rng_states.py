"""Random states in checkpoints: a resumed run generates the same random numbers."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ret_lightning.training.callbacks.rng_states import RANDOM_STATES, RandomStates, get_random_state, set_random_state


@pytest.mark.parametrize(("before", "ranks"), [(1, 3), (3, 1), (2, 2)])
def test_states_are_reused_with_more_ranks(before: int, ranks: int) -> None:
    states = [f"state {rank}" for rank in range(before)]
    for rank in range(ranks):
        callback = RandomStates()
        trainer = type("Trainer", (), {"global_rank": rank, "world_size": ranks})
        callback.on_load_checkpoint(trainer, None, {RANDOM_STATES: states})
        assert callback._restored == f"state {rank % before}"


def sample_numbers() -> list[float]:
    return [random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))]  # noqa: NPY002


def test_restored_state_repeats_random_numbers(tmp_path: Path) -> None:
    """The state passes through a checkpoint read with `weights_only`, between the two normal numbers of a pair."""
    sample_numbers()
    torch.save(get_random_state(torch.device("cpu")), tmp_path / "state.pt")
    expected = [sample_numbers() for _ in range(3)]
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True), torch.device("cpu"))
    assert [sample_numbers() for _ in range(3)] == expected


def test_state_is_restored_once_at_first_batch() -> None:
    callback, trainer = RandomStates(), SimpleNamespace(global_rank=0, world_size=1)
    module, checkpoint = SimpleNamespace(device=torch.device("cpu")), {}
    callback.on_save_checkpoint(trainer, module, checkpoint)
    expected = sample_numbers()
    callback.on_load_checkpoint(trainer, module, checkpoint)
    assert sample_numbers() != expected  # numbers generated during setup have no effect
    callback.on_train_batch_start(trainer, module, None, 0)
    assert sample_numbers() == expected
    callback.on_train_batch_start(trainer, module, None, 1)
    assert sample_numbers() != expected
