"""Pictures of how a run goes, drawn by the run itself: a point a validation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """Collects a point after every validation, and draws the curves anew into a PNG file; a resumed run draws whole ones.

    Args:
        file: where to; its folder is made.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self._points: list[Point] = []

    @abstractmethod
    def point(self, trainer: Trainer, results: Results) -> Point:
        """What is drawn of one validation; made of plain numbers, strings and dicts of them, as checkpoints are."""

    @abstractmethod
    def draw(self, figure: Figure, points: Sequence[Point], results: Results) -> None:
        """Draws all points, of which there is one at least, and the last is of `results`."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a point to each curve."""
        result = RetrievalEvaluation.of(trainer).results.get("val")
        if trainer.sanity_checking or result is None:
            return
        results = result.subsets
        epoch = trainer.current_epoch + 1 if trainer.state.fn == "fit" else trainer.current_epoch
        at = {"epoch": float(epoch), "step": float(trainer.global_step)}
        self._points.append(at | self.point(trainer, results))
        if not trainer.is_global_zero:
            return
        with literal_figure(results, figsize=(8, 4.5)) as figure:
            self.draw(figure, self._points, results)
            with whole_file(self.file) as unfinished:
                figure.savefig(unfinished, format="png", dpi=120)

    def state_dict(self) -> dict[str, Any]:
        """The points so far."""
        return {"points": self._points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the points of the run that is resumed, but for those of versions before 2026-11-25, which had no step."""
        # Versions before 2026-12-01 said agreement for ann_recall.
        names = {"agreement": "ann_recall"}
        points = [point for point in state_dict["points"] if "step" in point]
        self._points = [{names.get(name, name): value for name, value in point.items()} for point in points]


class RecallCurves(Curves):
    """Draws `val/<subset>/recall@K`, a curve a subset, their mean, and what a random ranking would have.

    Args:
        file: see `Curves`.
        at: K, one that the evaluation computes; None: 5, or the largest where 5 is not computed.
    """

    def __init__(self, file: str, at: int | None = None) -> None:
        super().__init__(file)
        self.at = at

    def point(self, trainer: Trainer, results: Results) -> Point:
        """The recall of each subset, in [0, 1]."""
        if self.at is None:
            computed = RetrievalEvaluation.of(trainer).evaluator.recall_at
            self.at = 5 if 5 in computed else computed[-1]
        return {"recall": {name: result.metrics[f"recall@{self.at}"] for name, result in results.items()}}

    def draw(self, figure: Figure, points: Sequence[Point], results: Results) -> None:
        """One plot."""
        axes = figure.add_subplot()
        draw_subsets(axes, points, "recall")
        random = sum(result.random_recall[self.at] for result in results.values()) / len(results)
        axes.axhline(random, color="grey", linestyle="--", linewidth=1, label="random ranking")
        axes.set(ylabel=f"Recall@{self.at}", ylim=(0, 1.02), title=f"Recall@{self.at} on the validation queries")
        finish_axes(axes, points)


class EvaluationCurves(Curves):
    """Draws the seconds that each validation took, by part, and the recall@10 of an approximate index against exact search."""

    def point(self, trainer: Trainer, results: Results) -> Point:
        """Seconds by part (the mean over the ranks), and `ann_recall@10` by subset, where it was measured."""
        prefix = "val/seconds/"
        logged = trainer.callback_metrics.items()
        return {
            "seconds": {name.removeprefix(prefix): float(s) for name, s in logged if name.startswith(prefix)},
            "ann_recall": {
                name: r.ann_recall["ann_recall@10"] for name, r in results.items() if "ann_recall@10" in r.ann_recall
            },
        }

    def draw(self, figure: Figure, points: Sequence[Point], results: Results) -> None:
        """One plot, or two, one above the other."""
        measured = bool(points[-1]["ann_recall"])
        if measured:
            figure.set_size_inches(8, 6.5)
        seconds, *others = figure.subplots(1 + measured, squeeze=False)[:, 0]
        across = horizontal(points)[0]
        for name in points[-1]["seconds"]:
            seconds.plot(
                across, [p["seconds"].get(name, math.nan) for p in points], marker=".", linewidth=1.2, label=name
            )
        seconds.set(ylabel="seconds", title="Time of a validation")
        seconds.set_ylim(bottom=0)
        finish_axes(seconds, points)
        for axes in others:
            draw_subsets(axes, points, "ann_recall")
            axes.set(ylabel="ann_recall@10", title="Recall@10 against exact search")
            axes.set_ylim(bottom=min(axes.get_ylim()[0], 0.9), top=1.005)  # a narrower range would make much of nothing
            finish_axes(axes, points)


def draw_subsets(axes: Axes, points: Sequence[Point], key: str) -> None:
    """A curve a subset, and one of their mean.

    Args:
        axes: to draw into.
        points: `point[key]` is the value of each subset.
        key: says which values.
    """
    across = horizontal(points)[0]
    names = list(points[-1][key])
    for name in names:
        axes.plot(across, [point[key].get(name, math.nan) for point in points], marker=".", linewidth=1.2, label=name)
    means = [sum(point[key].values()) / len(point[key]) if point[key] else math.nan for point in points]
    axes.plot(across, means, color="black", marker="o", markersize=4, linewidth=2.5, label="mean")


def horizontal(points: Sequence[Point]) -> tuple[list[float], str]:
    """Where the points stand: at their epochs or, where an epoch has several validations, at their steps; and which it is."""
    epochs = [point["epoch"] for point in points]
    if len(set(epochs)) == len(epochs):
        return epochs, "epoch"
    return [point["step"] for point in points], "step"


def finish_axes(axes: Axes, points: Sequence[Point]) -> None:
    """What all plots have in common."""
    across, label = horizontal(points)
    axes.set_xlabel(label)
    if label == "epoch":
        axes.set_xlim(min(across) - 0.5, max(across) + 0.5)  # of one epoch too
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    # The lines are passed since the legend would leave out labels that begin with an underscore.
    labels = [line.get_label() for line in axes.lines]
    axes.legend(axes.lines, labels, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
