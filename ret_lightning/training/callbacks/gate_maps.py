"""Plot the mean gate activations as heat maps after every validation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from ret_lightning.plotting.figures import literal_figure
from ret_lightning.runtime.atomic_files import whole_file

METRIC_NAME = re.compile(r"gate/(?P<side>\w+)/(?P<kind>\w+)/step_(?P<step>\d+)")
Maps = dict[str, dict[str, list[float]]]


class GateMaps(Callback):
    """Plots the mean gate activations of the last logged training step as heat maps.

    The figure is also logged to W&B as `gates`. Nothing is drawn for a gate without activations.

    Args:
        file: the PNG file to write; its folder is created.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the gate activations that were logged last."""
        maps = group_activations({name: float(value) for name, value in trainer.callback_metrics.items()})
        if trainer.sanity_checking or not trainer.is_global_zero or not maps:
            return
        draw_gate_maps(maps, self.file)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("gates", [str(self.file)], step=trainer.global_step)


def group_activations(metrics: Mapping[str, float]) -> Maps:
    """Group logged gate activations by side and kind.

    Args:
        metrics: logged metrics; those not named `gate/<side>/<forget|text|image>/step_<n>` are ignored.

    Returns:
        Side to kind to mean activations in [0, 1], one per recurrence step.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    for name, value in metrics.items():
        if match := METRIC_NAME.fullmatch(name):
            found.setdefault(match["side"], {}).setdefault(match["kind"], {})[int(match["step"])] = value
    return {
        side: {kind: [value for _, value in sorted(steps.items())] for kind, steps in kinds.items()}
        for side, kinds in found.items()
    }


def draw_gate_maps(maps: Maps, file: Path) -> None:
    """Draw one heat map per side: one row per kind (forget, text, image), one column per recurrence step.

    Args:
        maps: side to kind to mean activations, as returned by `group_activations`.
        file: the PNG file to write; an existing file is replaced atomically.
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
        axes_of[-1].set_xlabel("recurrence step")
        figure.colorbar(image, ax=list(axes_of), label="mean gate activation")
        with whole_file(file) as unfinished:
            figure.savefig(unfinished, format="png", dpi=110)
