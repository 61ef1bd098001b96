"""The learning rate's scale at chosen steps, and where the horizon lies."""

from __future__ import annotations

import logging
import math

import pytest

from ret_lightning.errors import ConfigError
from ret_lightning.training.schedule import WarmupCosine


def test_the_shape() -> None:
    schedule = WarmupCosine(warmup_steps=10, floor=0.1)
    assert [schedule.scale(step, 110) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule.scale(10, 110) == pytest.approx(1.0)
    assert schedule.scale(60, 110) == pytest.approx(0.1 + 0.9 / 2)
    assert schedule.scale(35, 110) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert schedule.scale(110, 110) == schedule.scale(500, 110) == pytest.approx(0.1)
    scales = [schedule.scale(step, 110) for step in range(9, 111)]
    assert scales == sorted(scales, reverse=True)


def test_the_horizon_is_apart_from_the_stop() -> None:
    assert WarmupCosine(horizon_epochs=30).horizon(steps_per_epoch=2600, last_step=75_000) == 78_000
    assert WarmupCosine(horizon_steps=500).horizon(10, 100) == 500
    assert WarmupCosine().horizon(10, 100) == 100
    assert WarmupCosine(horizon_epochs=0.5).horizon(5, None) == 3


def test_a_warmup_longer_than_the_run_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert WarmupCosine(warmup_steps=100).horizon(10, 50) == 50
    assert "the warm-up of 100 steps outlasts the run of 50" in caplog.text


def test_contradictions_are_refused() -> None:
    with pytest.raises(ConfigError, match="two words for one thing"):
        WarmupCosine(horizon_steps=1, horizon_epochs=1)
    with pytest.raises(ConfigError, match="floor=2 in"):
        WarmupCosine(floor=2)
    with pytest.raises(ConfigError, match="the run has no end"):
        WarmupCosine().horizon(10, None)


def test_a_stream_needs_a_horizon_in_steps() -> None:
    assert WarmupCosine(horizon_steps=500).horizon(None, None) == 500
    assert WarmupCosine().horizon(None, 100) == 100
    with pytest.raises(ConfigError, match=r"scheduler\.horizon_epochs: .* set scheduler\.horizon_steps instead"):
        WarmupCosine(horizon_epochs=2).horizon(None, 100)
    with pytest.raises(ConfigError, match=r"needs scheduler\.horizon_steps or trainer\.max_steps"):
        WarmupCosine().horizon(None, None)
