"""Steps towards the horizon when the number of steps per epoch changes during a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ret_lightning.data.epoch_position import Position, Span
from ret_lightning.data.sampling.batch_samplers import GlobalBatches
from ret_lightning.training.epoch_steps import EpochSteps, resolve_horizon
from ret_lightning.training.schedule import WarmupCosine

ROWS = 80


def make_trainer(
    ranks: int, before: int | None, max_epochs: int = 10, max_steps: int = -1, **options
) -> SimpleNamespace:
    """Return a Trainer whose batches have 4 rows per rank.

    Args:
        ranks: number of ranks.
        before: number of ranks of the checkpoint; None for a new run.
        max_epochs: `max_epochs` of the Trainer.
        max_steps: `max_steps` of the Trainer.
        options: further attributes.
    """
    batches = GlobalBatches(ROWS, 4, world_size=ranks)
    batches.resume(Position(3, () if before is None else (Span(before, 4, 2),)))
    length = len(batches)
    epochs = -1 if max_epochs == -1 else length * max_epochs
    ends = [end for end in (epochs, max_steps) if end != -1]
    return SimpleNamespace(
        **{
            "estimated_stepping_batches": min(ends) if ends else float("inf"),
            "fit_loop": SimpleNamespace(setup_data=lambda: None),
            "train_dataloader": SimpleNamespace(batch_sampler=batches),
            "num_training_batches": length,
            "limit_train_batches": 1.0,
            "accumulate_grad_batches": 1,
            "max_epochs": max_epochs,
            "max_steps": max_steps,
            "is_global_zero": True,
            **options,
        }
    )


def test_new_run_counts_each_step_as_one() -> None:
    assert resolve_horizon(WarmupCosine(), make_trainer(2, None), None, 0) == (100, None)
    assert resolve_horizon(WarmupCosine(), make_trainer(2, 2), None, 32) == (100, None)


@pytest.mark.parametrize("schedule", [WarmupCosine(), WarmupCosine(horizon_epochs=10)])
@pytest.mark.parametrize("ranks", [1, 4])
def test_horizon_in_epochs_keeps_its_epochs(schedule: WarmupCosine, ranks: int) -> None:
    horizon, steps = resolve_horizon(schedule, make_trainer(ranks, 2), None, 35)
    assert horizon == 100  # in initial-size steps
    assert steps.count(35) == 35
    per_epoch = ROWS // (4 * ranks)
    assert steps.count(35 + per_epoch) == pytest.approx(45)
    assert steps.count(35 + 6.5 * per_epoch) == pytest.approx(horizon)
    again, back = resolve_horizon(schedule, make_trainer(2, ranks), steps, 35 + per_epoch)
    assert (again, back.rate) == (100, 1)
    assert back.count(35 + per_epoch + 55) == pytest.approx(100)


def test_restored_step_counter_is_kept() -> None:
    steps = EpochSteps(10, since=35, counted=35.0, rate=0.5)
    assert resolve_horizon(WarmupCosine(), make_trainer(1, 1), steps, 50) == (100, steps)
    assert resolve_horizon(WarmupCosine(), make_trainer(1, 1, max_epochs=12), steps, 50) == (120, steps)


@pytest.mark.parametrize(
    ("schedule", "options", "horizon"),
    [
        (WarmupCosine(horizon_steps=70), {}, 70),
        (WarmupCosine(), {"max_steps": 90}, 90),
        (WarmupCosine(), {"max_epochs": -1, "max_steps": 90}, 90),
    ],
)
def test_horizon_in_steps_is_unchanged(schedule: WarmupCosine, options: dict, horizon: int) -> None:
    assert resolve_horizon(schedule, make_trainer(1, 2, **options), None, 32) == (horizon, None)


def test_epochs_limited_to_batches_keep_their_steps() -> None:
    horizon, steps = resolve_horizon(WarmupCosine(), make_trainer(1, 2, limit_train_batches=5), None, 17)
    assert horizon == 50
    assert [steps.count(step) for step in (17, 30)] == [17, 30]


def test_accumulated_batches_count_as_one_step() -> None:
    horizon, steps = resolve_horizon(WarmupCosine(), make_trainer(1, 2, accumulate_grad_batches=2), None, 16)
    assert (horizon, steps.per_epoch, steps.rate) == (50, 5, 0.5)
