"""Curves of a run: one point per validation, restored when resuming."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
from lightning import Trainer
from matplotlib.figure import Figure
from PIL import Image

from ret_lightning import RetrievalEvaluation
from ret_lightning.retrieval import ExactIndex, FaissIndex
from ret_lightning.training.callbacks.curves import EvaluationCurves, RecallCurves, choose_x_axis, draw_subsets
from tests.support.tiny_training import OPTIONS, make_data, make_module


def test_curves_are_drawn_and_restored(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "pictures" / "recall.png"
    evaluation, curves = RetrievalEvaluation(ExactIndex(), recall_at=[1, 3], ranked=10), RecallCurves(str(file))
    trainer = Trainer(**OPTIONS, logger=False, max_epochs=2, callbacks=[evaluation, curves])
    with caplog.at_level(logging.INFO):
        trainer.fit(make_module(), datamodule=make_data(root))
    assert file.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in file.parent.iterdir()] == ["recall.png"]
    state = curves.state_dict()
    assert [point["epoch"] for point in state["points"]] == [1, 2]
    recall = {name: result.metrics["recall@3"] for name, result in evaluation.results["val"].subsets.items()}
    assert state["points"][1]["recall"] == recall  # of the largest K, since there is no recall@5
    assert set(recall) == {"wit", "infoseek", "evqa", "okvqa"}
    other = RecallCurves(str(file))
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert "epoch 2, step 6: recall@3" in caplog.text


def test_evaluation_curves_have_times_and_ann_recall(root: Path, tmp_path: Path) -> None:
    points, sizes = [], []
    for index in (FaissIndex("Flat"), ExactIndex()):
        file = tmp_path / f"{type(index).__name__}.png"
        evaluation, curves = RetrievalEvaluation(index, recall_at=[5], ranked=10), EvaluationCurves(str(file))
        options = {**OPTIONS, "val_check_interval": 0.5, "limit_train_batches": 2, "max_epochs": 1}
        trainer = Trainer(**options, logger=False, callbacks=[evaluation, curves])
        trainer.fit(make_module(), datamodule=make_data(root))
        points.append(curves.state_dict()["points"])
        with Image.open(file) as picture:
            sizes.append(picture.size)
    parts = {"encode", "build", "search"}
    for drawn, names in zip(points, (parts | {"ann_recall"}, parts), strict=True):
        assert choose_x_axis(drawn) == ([1, 2], "step")  # two validations in one epoch
        assert all(set(point["seconds"]) == names for point in drawn)
        assert all(0 < point["seconds"]["encode"] < 60 for point in drawn)
    assert points[0][0]["ann_recall"] == dict.fromkeys(("wit", "infoseek", "evqa", "okvqa"), 1.0)
    assert points[1][0]["ann_recall"] == {}
    assert sizes[0][1] > sizes[1][1]  # one more plot


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 10), (2, 20)], ([1, 2], "epoch")),
        ([(1, 5), (1, 10), (2, 15)], ([5, 10, 15], "step")),
        ([(1, 10)], ([1], "epoch")),
    ],
)
def test_x_axis_is_steps_if_epochs_have_several_points(points: list, expected: tuple) -> None:
    assert choose_x_axis([{"epoch": float(epoch), "step": float(step)} for epoch, step in points]) == expected


def test_points_without_steps_are_dropped() -> None:
    curves, whole = RecallCurves("recall.png"), {"epoch": 2.0, "step": 6.0, "recall": {"wit": 0.5}}
    curves.load_state_dict({"points": [{"epoch": 1.0, "recall": {"wit": 0.25}}, whole]})
    assert curves.state_dict() == {"points": [whole]}


def test_mean_curve_averages_subsets_of_each_point() -> None:
    points = [
        {"epoch": 1.0, "step": 5.0, "recall": {"wit": 0.25}},
        {"epoch": 2.0, "step": 10.0, "recall": {"wit": 0.5, "okvqa": 0.75}},
    ]
    axes = Figure().subplots()
    draw_subsets(axes, points, "recall")
    drawn = {line.get_label(): [float(y) for y in line.get_ydata()] for line in axes.lines}
    assert drawn == {
        "wit": [0.25, 0.5],
        "okvqa": pytest.approx([math.nan, 0.75], nan_ok=True),
        "mean": [0.25, 0.625],
    }
