"""The result as one picture, for a paper or a README: the bars of the page, and its curves next to them."""

from __future__ import annotations

import textwrap
from io import BytesIO

from ret_lightning.plotting.figures import literal_figure
from ret_lightning.report.page import Content, bars, curves

_WIDTH = 32  # characters of a label's line


def draw_results(content: Content) -> bytes:
    """Draw each variant's mean, its 95 % interval over seeds and each seed, and the curves of the runs that logged any.

    The same content gives the same bytes.

    Args:
        content: of the page.

    Returns:
        A PNG file.
    """
    shown, lines = bars(content), curves(content)
    labels = [_short(bar.label) for bar in shown]
    colours = {bar.label: f"C{place % 10}" for place, bar in enumerate(shown)}
    styles = {bar.label: ("-", "--", ":")[place // 10 % 3] for place, bar in enumerate(shown)}
    size = (10 if lines else 6, 1.2 + 0.34 * max(len(shown), 6))
    with literal_figure([*labels, content.metric], figsize=size) as figure:
        left, *right = figure.subplots(1, 2 if lines else 1, squeeze=False)[0]
        for place, bar in enumerate(shown):
            left.barh(place, bar.value, color=colours[bar.label], alpha=0.55, height=0.7)
            if bar.interval:
                left.plot(bar.interval, [place, place], color="black", linewidth=1.2)
            left.plot([value for value, _ in bar.dots], [place] * len(bar.dots), "k.", markersize=4)
        left.set_yticks(range(len(shown)), labels)
        left.invert_yaxis()
        left.set(xlabel=content.metric, xlim=(0, 1))
        left.grid(axis="x", alpha=0.3)
        for axes in right:
            for line in lines:
                axes.plot(*zip(*line.mean, strict=True), styles[line.label], color=colours[line.label], marker=".")
            axes.set(xlabel="optimiser steps", ylabel=f"{content.metric}, validation")
            axes.grid(alpha=0.3)
        png = BytesIO()
        figure.savefig(png, format="png", dpi=120, metadata={"Software": None})
    return png.getvalue()


def _short(label: str) -> str:
    return textwrap.fill(label, _WIDTH, max_lines=3, placeholder=" …")
