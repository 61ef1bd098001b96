"""How far the gates open, by step of the recurrence, modality and side, as a picture after every validation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from ret_lightning.plotting.figures import literal_figure
from ret_lightning.runtime.atomic_files import whole_file

NAME = re.compile(r"gate/(?P<side>\w+)/(?P<kind>\w+)/step_(?P<step>\d+)")
Maps = dict[str, dict[str, list[float]]]


class GateMaps(Callback):
    """Draws the mean activations of the last logged training step as heat maps; on W&B as `gates`, too.

    Args:
        file: where to; its folder is made. A gate without activations draws nothing.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws what was logged last."""
        maps = gate_maps({name: float(value) for name, value in trainer.callback_metrics.items()})
        if trainer.sanity_checking or not trainer.is_global_zero or not maps:
            return
        draw_gate_maps(maps, self.file)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("gates", [str(self.file)], step=trainer.global_step)


def gate_maps(metrics: Mapping[str, float]) -> Maps:
    """Sorts `gate/<side>/<forget|text|image>/step_<n>` into side, kind, and one mean activation in [0, 1] a step."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for name, value in metrics.items():
        if match := NAME.fullmatch(name):
            found.setdefault(match["side"], {}).setdefault(match["kind"], {})[int(match["step"])] = value
    return {
        side: {kind: [value for _, value in sorted(steps.items())] for kind, steps in kinds.items()}
        for side, kinds in found.items()
    }


def draw_gate_maps(maps: Maps, file: Path) -> None:
    """Writes one heat map a side: rows are forget, text and image, columns the steps.

    Args:
        maps: what `gate_maps` gives.
        file: a PNG file, replaced whole.
    """
    steps = max(len(values) for kinds in maps.values() for values in kinds.values())
    with literal_figure(figsize=(2.2 + 0.62 * steps, 0.9 + 1.9 * len(maps))) as figure:
        axes_of = figure.subplots(len(maps), 1, squeeze=False)[:, 0]
        for axes, (side, kinds) in zip(axes_of, maps.items(), strict=True):
            image = axes.imshow(list(kinds.values()), vmin=0, vmax=1, cmap="viridis", aspect="auto")
            for row, values in enumerate(kinds.values()):
                for column, value in enumerate(values):
                    axes.text(
                        column, row, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.6 else "white"
                    )
            axes.set_yticks(range(len(kinds)), list(kinds))
            axes.set_xticks(range(steps), [str(step + 1) for step in range(steps)])
            axes.set_title(side)
        axes_of[-1].set_xlabel("step of the recurrence")
        figure.colorbar(image, ax=list(axes_of), label="mean activation")
        with whole_file(file) as unfinished:
            figure.savefig(unfinished, format="png", dpi=110)
