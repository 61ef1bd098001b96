"""Random states in checkpoints: a resumed run generates the same random numbers."""

from __future__ import annotations

import random
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ret_lightning.training import module as module_file
from ret_lightning.training.callbacks.rng_states import (
    RANDOM_STATES,
    RandomStates,
    get_random_state,
    seed_gpu,
    set_random_state,
)
from tests.support.tiny_training import make_module


@pytest.mark.parametrize(("before", "ranks"), [(1, 3), (3, 1), (2, 2)])
def test_states_are_reused_with_more_ranks(before: int, ranks: int) -> None:
    """The state of a GPU is not reused: it was seeded for the rank."""
    states = [{"torch": f"state {rank}", "cuda": f"GPU {rank}"} for rank in range(before)]
    for rank in range(ranks):
        callback = RandomStates()
        trainer = type("Trainer", (), {"global_rank": rank, "world_size": ranks})
        callback.on_load_checkpoint(trainer, None, {RANDOM_STATES: states})
        gpu = f"GPU {rank}" if rank < before else None
        assert callback._restored == {"torch": f"state {rank % before}", "cuda": gpu}


@pytest.fixture
def gpu_seeds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list of the seeds that a GPU receives."""
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed", seeds.append)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return seeds


def test_each_rank_seeds_its_gpu_differently(gpu_seeds: list[int]) -> None:
    def seeds(seed: int, device: str) -> list[int]:
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        gpu_seeds.clear()
        for rank in range(4):
            seed_gpu(torch.device(device), rank)
        assert torch.equal(torch.get_rng_state(), state)
        return list(gpu_seeds)

    first = seeds(42, "cuda:0")
    assert len(set(first)) == 3  # rank 0 keeps its seed
    assert seeds(42, "cuda:0") == first
    assert not set(seeds(43, "cuda:0")) & {42, 43, *first}
    assert seeds(42, "cpu") == []


@pytest.mark.parametrize("rank", [0, 1])
def test_training_seeds_the_gpu_before_the_first_batch(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[tuple[torch.device, int]] = []
    monkeypatch.setattr(module_file, "seed_gpu", lambda *given: seeded.append(given))
    module = make_module()
    module._trainer = SimpleNamespace(global_rank=rank)
    module.on_train_start()
    assert seeded == [(torch.device("cpu"), rank)]


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
