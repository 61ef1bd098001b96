"""Measured time, parameters and memory of a run."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer

from ret_lightning import RetrievalEvaluation
from ret_lightning.retrieval import ExactIndex
from ret_lightning.training.callbacks.cost import Cost
from tests.support.tiny_training import OPTIONS, make_data, make_module


class Sleeps(Callback):
    """Sleeps, and allocates 256 MiB for a moment."""

    def on_train_start(self, trainer: Trainer, pl_module) -> None:
        np.ones(2**25)
        time.sleep(0.3)


def fit(root: Path, cost: Cost, *callbacks: Callback) -> Trainer:
    evaluation = RetrievalEvaluation(ExactIndex(), recall_at=[1, 5], ranked=10)
    options = {**OPTIONS, "max_epochs": 1, "logger": False, "callbacks": [evaluation, cost, *callbacks]}
    trainer = Trainer(**options)
    trainer.fit(make_module(), datamodule=make_data(root))
    return trainer


def test_cost_of_a_run_is_measured(root: Path) -> None:
    cost = Cost()
    start = time.perf_counter()
    trainer = fit(root, cost, Sleeps())
    trainer.test(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    took = time.perf_counter() - start
    measured = cost.collect()
    assert 0.3 <= measured["training_seconds"] <= took
    assert 0 < measured["test_seconds"] <= took - measured["training_seconds"] + 0.01
    assert measured["parameters"] == sum(p.numel() for p in make_module().parameters())
    assert measured["cuda_bytes"] is None or torch.cuda.is_initialized()
    assert (measured["ranks"], measured["device"]) == (1, "cpu")


def test_frozen_parameters_are_not_trained(root: Path) -> None:
    cost, module = Cost(), make_module(train_backbones=False)
    options = {**OPTIONS, "max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0, "logger": False}
    trainer = Trainer(**options, callbacks=[cost])
    trainer.fit(module, datamodule=make_data(root))
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert cost.collect()["trained_parameters"] == trained < cost.collect()["parameters"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the memory peak is available on Linux only")
def test_memory_peak_excludes_earlier_runs(root: Path) -> None:
    peaks = []
    for callbacks in ([Sleeps()], []):
        cost = Cost()
        fit(root, cost, *callbacks)
        peaks.append(cost.collect()["resident_bytes"])
    if None in peaks:
        pytest.skip("this container does not let a process reset its peak")
    assert 150 * 2**20 < peaks[0] - peaks[1] < 400 * 2**20


def test_resumed_run_adds_earlier_cost(root: Path) -> None:
    first = Cost()
    fit(root, first, Sleeps())
    state = first.state_dict()
    resumed = Cost()
    resumed.load_state_dict(state)
    assert resumed.collect()["training_seconds"] == round(state["seconds"], 3) >= 0.3
    fit(root, resumed)
    assert resumed.collect()["training_seconds"] > round(state["seconds"], 3)
    assert (resumed.collect()["resident_bytes"] or 0) >= state["peaks"]["resident_bytes"]
