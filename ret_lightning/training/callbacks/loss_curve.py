"""Plot the training loss of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer

from ret_lightning.plotting.figures import literal_figure
from ret_lightning.runtime.atomic_files import whole_file

METRIC = "train/loss"
_HALF_WIDTH = 1 / 50  # the bold curve is a centred mean over this fraction of the points on each side
_FEW = 50  # fewer points are marked


class LossCurve(Callback):
    """Plots `train/loss` over the optimizer steps after every validation and at the end of training.

    A thin line shows every logged value (every `log_every_n_steps`; the mean over ranks, of the last batch if batches are
    accumulated), a bold line their moving average. The points are stored in checkpoints, so the plot of a resumed run covers
    the whole run.

    Args:
        file: the PNG file to write; its folder is created.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self._steps: list[int] = []
        self._losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the loss of a step that was logged."""
        step, last = trainer.global_step, self._steps[-1] if self._steps else 0
        if not trainer.is_global_zero or step <= last or step % cast(Any, trainer).log_every_n_steps != 0:
            return  # step <= last: a batch that is only accumulated
        loss = trainer.callback_metrics.get(METRIC)
        if loss is not None:
            self._steps.append(step)
            self._losses.append(float(loss))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figure."""
        if trainer.state.fn == "fit":
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figure."""
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and self._steps:
            draw_loss(self._steps, self._losses, self.file)

    def state_dict(self) -> dict[str, Any]:
        """Return the points collected so far, as tensors of shape (points,)."""
        return {
            "steps": torch.tensor(self._steps, dtype=torch.int64),
            "losses": torch.tensor(self._losses, dtype=torch.float64),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the points of the resumed run."""
        self._steps, self._losses = state_dict["steps"].tolist(), state_dict["losses"].tolist()


def draw_loss(steps: Sequence[int], losses: Sequence[float], file: Path) -> None:
    """Draw a loss over optimizer steps. Values that are not finite leave a gap in the thin line.

    Args:
        steps: optimizer steps, ascending, at least one.
        losses: the loss of each step.
        file: the PNG file to write; an existing file is replaced atomically.
    """
    with literal_figure(figsize=(8, 4.5)) as figure:
        axes = figure.add_subplot()
        marker = "." if len(steps) < _FEW else ""
        half_width = int(len(steps) * _HALF_WIDTH)
        style: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.45} if half_width > 1 else {"linewidth": 1.2}
        axes.plot(steps, losses, color="C0", marker=marker, label="logged", **style)
        if half_width > 1:
            smooth = moving_average(losses, half_width)
            axes.plot(steps, smooth, color="C0", linewidth=2, label=f"mean of {2 * half_width + 1} values")
            axes.legend(frameon=False)
        axes.set(xlabel="optimizer step", ylabel="loss", title="Training loss", xlim=(0, steps[-1] * 1.01))
        cast(Any, axes.xaxis.get_major_locator()).set_params(integer=True)
        axes.grid(alpha=0.3)
        with whole_file(file) as unfinished:
            figure.savefig(unfinished, format="png", dpi=120)


def moving_average(values: Sequence[float], half_width: int) -> list[float]:
    """Return the mean of the finite values among each value and its neighbours; NaN where there are none.

    Args:
        values: the values.
        half_width: number of neighbours on each side.
    """
    tensor = torch.tensor(values, dtype=torch.float64)
    finite = tensor.isfinite()
    index = torch.arange(len(tensor))
    low, high = (index - half_width).clamp(min=0), (index + half_width + 1).clamp(max=len(tensor))
    sums, counts = (
        torch.cat([column.new_zeros(1), column.cumsum(0)]) for column in (tensor.where(finite, 0.0), finite.double())
    )
    return ((sums[high] - sums[low]) / (counts[high] - counts[low])).tolist()
