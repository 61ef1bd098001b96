"""Training pairs per second over all ranks."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from ret_lightning.training.callbacks.throughput import Throughput


def test_rate_excludes_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, logged = [100.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    module = SimpleNamespace(log=lambda name, value, **_: logged.append((name, value)))
    trainer = SimpleNamespace(world_size=3, log_every_n_steps=2, global_step=0)
    callback = Throughput()

    def batch(rows: int, seconds: float) -> None:
        clock[0] += seconds
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, range(rows), trainer.global_step)

    callback.on_train_epoch_start(trainer, module)
    batch(8, 1.0)
    assert logged == []
    batch(4, 3.0)
    assert logged.pop() == ("train/samples_per_second", pytest.approx(3 * (8 + 4) / 4.0))
    clock[0] += 50.0  # a validation
    callback.on_validation_end(trainer, module)
    batch(8, 1.0)
    batch(8, 1.0)
    assert logged.pop() == ("train/samples_per_second", pytest.approx(3 * 16 / 2.0))
