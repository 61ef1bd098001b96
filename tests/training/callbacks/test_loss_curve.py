"""The picture of the training loss: one point per logged step, restored when resuming."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from ret_lightning.training.callbacks import LossCurve
from ret_lightning.training.callbacks.loss_curve import draw_loss, moving_average
from tests.support.tiny_training import OPTIONS, fit, make_data, make_module


def _points(curve: LossCurve) -> dict[int, float]:
    state = curve.state_dict()
    return dict(zip(state["steps"].tolist(), state["losses"].tolist(), strict=True))


@pytest.mark.parametrize(("every", "accumulate"), [(1, 1), (2, 1), (1, 2)])
def test_points_are_the_logged_losses(root: Path, tmp_path: Path, every: int, accumulate: int) -> None:
    curve, logger = LossCurve(str(tmp_path / "pictures" / "loss.png")), CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    trainer = fit(
        root,
        make_module(),
        callbacks=[curve],
        logger=logger,
        log_every_n_steps=every,
        accumulate_grad_batches=accumulate,
    )
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    names, values = rows[0].split(","), [row.split(",") for row in rows[1:]]
    step, loss = names.index("step"), names.index("train/loss")
    logged = {int(row[step]) + 1: float(row[loss]) for row in values if row[loss]}
    assert _points(curve) == pytest.approx(logged)
    assert list(logged) == [s for s in range(1, trainer.global_step + 1) if s % every == 0]
    assert [path.name for path in curve.file.parent.iterdir()] == ["loss.png"]


def test_resumed_run_has_the_points_of_the_whole_run(root: Path, tmp_path: Path) -> None:
    first, second = (LossCurve(str(tmp_path / f"{name}.png")) for name in ("first", "second"))
    options = {"log_every_n_steps": 1, "callbacks": [first]}
    steps = fit(root, make_module(), max_epochs=1, **options).global_step
    trainer = fit(root, make_module(), max_epochs=1, **options)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Trainer(**OPTIONS, logger=False, limit_val_batches=0, max_epochs=2, log_every_n_steps=1, callbacks=[second])
    again.fit(make_module(), datamodule=make_data(root), ckpt_path=tmp_path / "last.ckpt")
    assert list(_points(second)) == list(range(1, 2 * steps + 1))
    assert _points(first).items() < _points(second).items()


def test_picture_is_drawn_without_training_steps_beyond_the_last(root: Path, tmp_path: Path) -> None:
    curve = LossCurve(str(tmp_path / "loss.png"))
    fit(root, make_module(), callbacks=[curve], log_every_n_steps=1000)
    assert not curve.file.exists()


@pytest.mark.parametrize("losses", [[2.0], [3.0, math.nan, 1.0], [float(i % 7) for i in range(500)], [math.nan] * 120])
def test_any_losses_can_be_drawn(tmp_path: Path, losses: list[float]) -> None:
    draw_loss(range(10, 10 * len(losses) + 1, 10), losses, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (960, 540)
        assert len(set(picture.convert("L").tobytes())) > 2


def test_moving_average_ignores_values_that_are_not_finite() -> None:
    values = [1.0, math.nan, 3.0, 8.0, math.inf, math.nan, math.nan]
    expected = [1.0, 2.0, 5.5, 5.5, 8.0, math.nan, math.nan]
    assert moving_average(values, 1) == pytest.approx(expected, nan_ok=True)
