"""The result as one picture, for a paper or a README: the bars of the page, and its curves beside them."""

from __future__ import annotations

import textwrap
from pathlib import Path

from ret_lightning.atomic import whole_file
from ret_lightning.report.page import Content, bars, curves

_WIDTH = 32  # characters of a label's line


def draw(content: Content, file: Path) -> None:
    """Writes a PNG: each variant's mean, its 95 % interval over seeds and each seed; the curves where runs logged any.

    The same content gives the same bytes.

    Args:
        content: of the page.
        file: replaced whole.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown, lines = bars(content), curves(content)
    colours = {bar.label: f"C{place % 10}" for place, bar in enumerate(shown)}
    styles = {bar.label: ("-", "--", ":")[place // 10 % 3] for place, bar in enumerate(shown)}
    height = 1.2 + 0.34 * max(len(shown), 6)
    figure = Figure(figsize=(10 if lines else 6, height), layout="constrained")
    FigureCanvasAgg(figure)
    left, *right = figure.subplots(1, 2 if lines else 1, squeeze=False)[0]
    for place, bar in enumerate(shown):
        left.barh(place, bar.value, color=colours[bar.label], alpha=0.55, height=0.7)
        if bar.interval:
            left.plot(bar.interval, [place, place], color="black", linewidth=1.2)
        left.plot([value for value, _ in bar.dots], [place] * len(bar.dots), "k.", markersize=4)
    left.set_yticks(range(len(shown)), [_short(bar.label) for bar in shown])
    left.invert_yaxis()
    left.set(xlabel=content.metric, xlim=(0, 1))
    left.grid(axis="x", alpha=0.3)
    for axes in right:
        for line in lines:
            steps, values = zip(*line.mean, strict=True)
            axes.plot(
                steps, values, styles[line.label], color=colours[line.label], marker=".", label=_short(line.label)
            )
        axes.set(xlabel="optimiser steps", ylabel=f"{content.metric}, validation")
        axes.grid(alpha=0.3)
    with whole_file(file) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120, metadata={"Software": None})


def _short(label: str) -> str:
    return textwrap.fill(label, _WIDTH, max_lines=3, placeholder=" …")
