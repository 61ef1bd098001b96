"""The scale of the learning rate, and the horizon."""

from __future__ import annotations

import logging
import math

import pytest

from ret_lightning.errors import ConfigError
from ret_lightning.training.schedule import WarmupCosine


def test_scale_follows_warmup_and_cosine() -> None:
    schedule = WarmupCosine(warmup_steps=10, floor=0.1)
    assert [schedule.compute_scale(step, 110) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule.compute_scale(10, 110) == pytest.approx(1.0)
    assert schedule.compute_scale(60, 110) == pytest.approx(0.1 + 0.9 / 2)
    assert schedule.compute_scale(35, 110) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert schedule.compute_scale(110, 110) == schedule.compute_scale(500, 110) == pytest.approx(0.1)
    scales = [schedule.compute_scale(step, 110) for step in range(9, 111)]
    assert scales == sorted(scales, reverse=True)


def test_horizon_can_differ_from_end_of_training() -> None:
    assert WarmupCosine(horizon_epochs=30).compute_horizon(steps_per_epoch=2600, last_step=75_000) == 78_000
    assert WarmupCosine(horizon_steps=500).compute_horizon(10, 100) == 500
    assert WarmupCosine().compute_horizon(10, 100) == 100
    assert WarmupCosine(horizon_epochs=0.5).compute_horizon(5, None) == 3


def test_warmup_longer_than_horizon_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert WarmupCosine(warmup_steps=100).compute_horizon(10, 50) == 50
    assert "warmup_steps=100 exceeds the horizon of 50 steps" in caplog.text


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        WarmupCosine(horizon_steps=1, horizon_epochs=1)
    assert error.value.code == "schedule-two-horizons"
    with pytest.raises(ConfigError) as error:
        WarmupCosine(floor=2)
    assert (error.value.code, error.value.floor) == ("schedule-out-of-range", 2)
    with pytest.raises(ConfigError) as error:
        WarmupCosine().compute_horizon(10, None)
    assert error.value.code == "schedule-without-end"


def test_streaming_requires_horizon_in_steps() -> None:
    assert WarmupCosine(horizon_steps=500).compute_horizon(None, None) == 500
    assert WarmupCosine().compute_horizon(None, 100) == 100
    with pytest.raises(ConfigError) as error:
        WarmupCosine(horizon_epochs=2).compute_horizon(None, 100)
    assert error.value.code == "schedule-epochs-unknown"
    assert "set scheduler.horizon_steps" in error.value.message
    with pytest.raises(ConfigError) as error:
        WarmupCosine().compute_horizon(None, None)
    assert error.value.code == "schedule-without-end"
    assert "scheduler.horizon_steps or trainer.max_steps" in error.value.message
