"""results.png of a report: its bar chart and its curves, drawn by matplotlib for papers and READMEs."""

from __future__ import annotations

import textwrap
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ret_lightning.plotting.figures import literal_figure
from ret_lightning.report.charts import bar_axis, line_axes
from ret_lightning.report.page import ReportContent, metric_bars, metric_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ret_lightning.report.charts import Bar, Line

_LABEL_WIDTH = 32  # characters per line of a label


def draw_results(content: ReportContent) -> bytes:
    """Draw each variant's mean, 95 % confidence interval and seeds as bars, next to the validation curves, if any.

    The same content returns the same bytes.

    Args:
        content: of the report.

    Returns:
        The content of a PNG file.
    """
    bars, curves = metric_bars(content), metric_curves(content)
    labels = [textwrap.fill(bar.label, _LABEL_WIDTH, max_lines=3, placeholder=" …") for bar in bars]
    size = (10 if curves else 6, 1.2 + 0.34 * max(len(bars), 6))
    with literal_figure([*labels, content.metric], figsize=size) as figure:
        left, *right = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
        _draw_bars(left, bars, labels, content.metric)
        for axes in right:
            _draw_curves(axes, curves, f"{content.metric}, validation")
        png = BytesIO()
        figure.savefig(png, format="png", dpi=120, metadata={"Software": None})
    return png.getvalue()


def _draw_bars(axes: Axes, bars: list[Bar], labels: list[str], metric: str) -> None:
    for i, bar in enumerate(bars):
        axes.barh(i, bar.value, color=f"C{i % 10}", alpha=0.55, height=0.7)
        if bar.interval:
            axes.plot(bar.interval, [i, i], color="black", linewidth=1.2, marker="|", clip_on=False)
        if bar.dots:
            axes.plot([value for value, _ in bar.dots], [i] * len(bar.dots), "k.", markersize=4, clip_on=False)
    low, high, ticks = bar_axis(bars)
    axes.set_yticks(range(len(bars)), labels)
    axes.invert_yaxis()
    axes.set(xlabel=metric, xlim=(low, high), xticks=ticks)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_curves(axes: Axes, curves: list[Line], label: str) -> None:
    for curve in curves:
        style: dict[str, Any] = {
            "color": f"C{curve.series % 10}",
            "linestyle": ("-", "--", ":")[curve.series // 10 % 3],
        }
        for points, _ in curve.single:
            axes.plot(*zip(*points, strict=True), **style, linewidth=0.7, alpha=0.45)
        axes.plot(*zip(*curve.mean, strict=True), **style, marker=".", clip_on=False)
    (x_low, x_high, x_ticks), (y_low, y_high, y_ticks) = line_axes(curves)
    axes.set(xlabel="optimizer steps", ylabel=label, xlim=(x_low, x_high), ylim=(y_low, y_high))
    axes.set(xticks=x_ticks, yticks=y_ticks)
    axes.grid(alpha=0.3)
