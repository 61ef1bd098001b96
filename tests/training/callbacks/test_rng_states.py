"""Random states in checkpoints: what is drawn after a resume is what would have been drawn."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ret_lightning.training.callbacks.rng_states import KEY, RandomStates, random_state, set_random_state


@pytest.mark.parametrize(("before", "ranks"), [(1, 3), (3, 1), (2, 2)])
def test_random_states_of_another_number_of_ranks(before: int, ranks: int) -> None:
    states = [f"state {rank}" for rank in range(before)]
    for rank in range(ranks):
        callback = RandomStates()
        trainer = type("Trainer", (), {"global_rank": rank, "world_size": ranks})
        callback.on_load_checkpoint(trainer, None, {KEY: states})
        assert callback._restored == f"state {rank % before}"


def drawn() -> list[float]:
    return [random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))]  # noqa: NPY002


def test_restored_state_draws_the_same_again(tmp_path: Path) -> None:
    """Through a checkpoint that is read with `weights_only`, and between the two normal numbers of a pair."""
    drawn()
    torch.save(random_state(torch.device("cpu")), tmp_path / "state.pt")
    expected = [drawn() for _ in range(3)]
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True), torch.device("cpu"))
    assert [drawn() for _ in range(3)] == expected


def test_state_is_restored_at_the_first_batch_once() -> None:
    callback, trainer = RandomStates(), SimpleNamespace(global_rank=0, world_size=1)
    module, checkpoint = SimpleNamespace(device=torch.device("cpu")), {}
    callback.on_save_checkpoint(trainer, module, checkpoint)
    expected = drawn()
    callback.on_load_checkpoint(trainer, module, checkpoint)
    assert drawn() != expected  # what is drawn during setup has no effect
    callback.on_train_batch_start(trainer, module, None, 0)
    assert drawn() == expected
    callback.on_train_batch_start(trainer, module, None, 1)
    assert drawn() != expected
