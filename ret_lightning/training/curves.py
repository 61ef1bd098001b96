"""A picture of how recall rises: one curve a subset, drawn by the run itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from ret_lightning.atomic import whole_file
from ret_lightning.training.evaluation import RetrievalEvaluation


class RecallCurves(Callback):
    """Draws `val/<subset>/recall@K` over the epochs into a PNG file, anew after every validation.

    Args:
        file: where to; its folder is made.
        at: K.
    """

    def __init__(self, file: str, at: int = 5) -> None:
        self.file = Path(file)
        self.at = at
        self._points: list[dict[str, float]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a point to each curve."""
        results = RetrievalEvaluation.of(trainer).results.get("val")
        if trainer.sanity_checking or results is None:
            return
        epoch = trainer.current_epoch + 1 if trainer.state.fn == "fit" else trainer.current_epoch
        point = {name: result.metrics[f"recall@{self.at}"] for name, result in results.items()}
        self._points.append({"epoch": float(epoch), **point})
        if trainer.is_global_zero:
            random = [result.random_recall[self.at] for result in results.values()]
            draw(self._points, self.at, sum(random) / len(random), self.file)

    def state_dict(self) -> dict[str, Any]:
        """The points so far, so that a resumed run draws whole curves."""
        return {"points": self._points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the points of the run that is resumed."""
        self._points = list(state_dict["points"])


def draw(points: list[dict[str, float]], at: int, random_recall: float, file: Path) -> None:
    """Writes the curves.

    Args:
        points: one a validation: `epoch`, and the recall of each subset in [0, 1].
        at: K of Recall@K.
        random_recall: mean Recall@K of a random ranking.
        file: a PNG file, replaced whole.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    epochs = [point["epoch"] for point in points]
    names = [name for name in points[-1] if name != "epoch"]
    for name in names:
        axes.plot(epochs, [point[name] for point in points], marker=".", linewidth=1.2, label=name)
    means = [sum(point[name] for name in names) / len(names) for point in points]
    axes.plot(epochs, means, color="black", marker="o", markersize=4, linewidth=2.5, label="mean")
    axes.axhline(random_recall, color="grey", linestyle="--", linewidth=1, label="random ranking")
    axes.set(xlabel="epoch", ylabel=f"Recall@{at}", ylim=(0, 1.02), title=f"Recall@{at} on the validation queries")
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)  # of one epoch too
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    with whole_file(file) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)
