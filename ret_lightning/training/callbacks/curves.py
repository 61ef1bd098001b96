"""Plot the validation results of a run, one point per validation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning import Callback, LightningModule, Trainer

from ret_lightning.evaluation.callback import RetrievalEvaluation
from ret_lightning.evaluation.evaluation_result import SubsetResult
from ret_lightning.plotting.figures import literal_figure
from ret_lightning.runtime.atomic_files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, SubsetResult]
Point = dict[str, Any]


class Curves(Callback):
    """Collects a point after every validation and plots all points into a PNG file.

    The points are stored in checkpoints, so the plot of a resumed run covers the whole run.

    Args:
        file: the PNG file to write; its folder is created.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self._points: list[Point] = []

    @abstractmethod
    def compute_point(self, trainer: Trainer, results: Results) -> Point:
        """Return the values to plot for one validation.

        Args:
            trainer: the Trainer, after a validation.
            results: the validation results by subset name.

        Returns:
            Plain numbers, strings, and dicts of them, since the points are stored in checkpoints.
        """

    @abstractmethod
    def draw(self, figure: Figure, points: Sequence[Point], results: Results) -> None:
        """Draw all points.

        Args:
            figure: the figure to draw into.
            points: all points so far, at least one; the last one belongs to `results`.
            results: the results of the last validation by subset name.
        """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a point and draw the figure."""
        result = RetrievalEvaluation.from_trainer(trainer).results.get("val")
        if trainer.sanity_checking or result is None:
            return
        results = result.subsets
        epoch = trainer.current_epoch + 1 if trainer.state.fn == "fit" else trainer.current_epoch
        position = {"epoch": float(epoch), "step": float(trainer.global_step)}
        self._points.append(position | self.compute_point(trainer, results))
        if not trainer.is_global_zero:
            return
        with literal_figure(results, figsize=(8, 4.5)) as figure:
            self.draw(figure, self._points, results)
            with whole_file(self.file) as unfinished:
                figure.savefig(unfinished, format="png", dpi=120)

    def state_dict(self) -> dict[str, Any]:
        """Return the points collected so far."""
        return {"points": self._points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the points of the resumed run.

        Points without a step, written by versions before 2026-11-25, are dropped.
        """
        # Versions before 2026-12-01 stored ann_recall as agreement.
        names = {"agreement": "ann_recall"}
        points = [point for point in state_dict["points"] if "step" in point]
        self._points = [{names.get(name, name): value for name, value in point.items()} for point in points]


class RecallCurves(Curves):
    """Plots `val/<subset>/recall@K` for each subset, the mean over the subsets, and the recall of a random ranking.

    Args:
        file: the PNG file to write; its folder is created.
        at: K, one of the values that the evaluation computes. If None, 5, or the largest K if recall@5 is not computed.
    """

    def __init__(self, file: str, at: int | None = None) -> None:
        super().__init__(file)
        self.at = at

    def compute_point(self, trainer: Trainer, results: Results) -> Point:
        """Return the recall of each subset, in [0, 1]."""
        if self.at is None:
            computed = RetrievalEvaluation.from_trainer(trainer).evaluator.recall_at
            self.at = 5 if 5 in computed else computed[-1]
        return {"recall": {name: result.metrics[f"recall@{self.at}"] for name, result in results.items()}}

    def draw(self, figure: Figure, points: Sequence[Point], results: Results) -> None:
        """Draw the recall curves and the random baseline."""
        assert self.at is not None  # set by `compute_point`
        axes = figure.add_subplot()
        draw_subsets(axes, points, "recall")
        random = sum(result.random_recall[self.at] for result in results.values()) / len(results)
        axes.axhline(random, color="grey", linestyle="--", linewidth=1, label="random ranking")
        axes.set(ylabel=f"Recall@{self.at}", ylim=(0, 1.02), title=f"Recall@{self.at} on the validation queries")
        format_axes(axes, points)


class EvaluationCurves(Curves):
    """Plots the seconds of each part of a validation, and the recall@10 of an approximate index against exact search."""

    def compute_point(self, trainer: Trainer, results: Results) -> Point:
        """Return the seconds per part (mean over the ranks) and `ann_recall@10` per subset if it was measured."""
        prefix = "val/seconds/"
        logged = trainer.callback_metrics.items()
        return {
            "seconds": {name.removeprefix(prefix): float(s) for name, s in logged if name.startswith(prefix)},
            "ann_recall": {
                name: r.ann_recall["ann_recall@10"] for name, r in results.items() if "ann_recall@10" in r.ann_recall
            },
        }

    def draw(self, figure: Figure, points: Sequence[Point], results: Results) -> None:
        """Draw the times and, if it was measured, `ann_recall@10` below them."""
        measured = bool(points[-1]["ann_recall"])
        if measured:
            figure.set_size_inches(8, 6.5)
        seconds, *others = figure.subplots(1 + measured, squeeze=False)[:, 0]
        x = choose_x_axis(points)[0]
        for name in points[-1]["seconds"]:
            seconds.plot(x, [p["seconds"].get(name, math.nan) for p in points], marker=".", linewidth=1.2, label=name)
        seconds.set(ylabel="seconds", title="Validation time")
        seconds.set_ylim(bottom=0)
        format_axes(seconds, points)
        for axes in others:
            draw_subsets(axes, points, "ann_recall")
            axes.set(ylabel="ann_recall@10", title="Recall@10 against exact search")
            # A narrower range would exaggerate small differences.
            axes.set_ylim(bottom=min(axes.get_ylim()[0], 0.9), top=1.005)
            format_axes(axes, points)


def draw_subsets(axes: Axes, points: Sequence[Point], key: str) -> None:
    """Draw one curve per subset and one curve of their mean.

    Args:
        axes: the axes to draw into.
        points: `point[key]` maps each subset to its value.
        key: the entry of the points to draw.
    """
    x = choose_x_axis(points)[0]
    names = list(points[-1][key])
    for name in names:
        axes.plot(x, [point[key].get(name, math.nan) for point in points], marker=".", linewidth=1.2, label=name)
    means = [sum(point[key].values()) / len(point[key]) if point[key] else math.nan for point in points]
    axes.plot(x, means, color="black", marker="o", markersize=4, linewidth=2.5, label="mean")


def choose_x_axis(points: Sequence[Point]) -> tuple[list[float], str]:
    """Return the x values of the points and the label of the axis.

    Returns:
        The epochs and `epoch`, or the steps and `step` if an epoch has several validations.
    """
    epochs = [point["epoch"] for point in points]
    if len(set(epochs)) == len(epochs):
        return epochs, "epoch"
    return [point["step"] for point in points], "step"


def format_axes(axes: Axes, points: Sequence[Point]) -> None:
    """Set the limits, grid, label and legend that all plots share.

    Args:
        axes: the axes to format, after drawing.
        points: the points that were drawn.
    """
    x, label = choose_x_axis(points)
    axes.set_xlabel(label)
    if label == "epoch":
        axes.set_xlim(min(x) - 0.5, max(x) + 0.5)  # also valid for a single epoch
    cast(Any, axes.xaxis.get_major_locator()).set_params(integer=True)
    axes.grid(alpha=0.3)
    # Without explicit lines, the legend omits labels that begin with an underscore.
    labels = [str(line.get_label()) for line in axes.lines]
    axes.legend(axes.lines, labels, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
