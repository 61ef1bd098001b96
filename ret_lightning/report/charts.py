"""Inline SVG charts of a report: bars, curves and heat maps.

Colours are custom properties of the page's stylesheet, so that the charts follow its light, dark and print themes. Each mark
has a `<title>` with its value and the runs that it is computed from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from markupsafe import Markup, escape

from ret_lightning.report.training_logs import GateMap

Scale: TypeAlias = Callable[[float], float]

COLOURS = 8  # size of the page's palette, `--series-0` to `--series-7`; further series reuse it with dashed lines
_WIDTH = 480
_MAX_LABEL_LENGTH = 64  # characters; the tooltip contains the full label


@dataclass(frozen=True)
class Bar:
    """A bar of a bar chart.

    Attributes:
        label: name of the variant.
        value: length of the bar, the mean over seeds.
        interval: (low, high) 95 % confidence interval of the mean, or None.
        dots: (value, tooltip) of each seed.
        origin: tooltip that states the runs and the code version.
    """

    label: str
    value: float
    interval: tuple[float, float] | None
    dots: list[tuple[float, str]]
    origin: str


@dataclass(frozen=True)
class Line:
    """A curve of a line chart.

    Attributes:
        label: name of the variant.
        mean: (x, y) points of the mean over seeds.
        single: of each seed its (x, y) points and its tooltip.
        series: index of the variant in the results table, which sets colour and dashes.
    """

    label: str
    mean: list[tuple[float, float]]
    single: list[tuple[list[tuple[float, float]], str]]
    series: int


def bar_chart(bars: Sequence[Bar], name: str) -> Markup:
    """Draw horizontal bars that start at 0, each below its label.

    Args:
        bars: from top to bottom.
        name: accessible name of the chart.

    Returns:
        An `<svg>` element.
    """
    left, right, row, top = 16.0, 52.0, 42, 4
    bottom = top + row * len(bars)
    low, high, ticks = bar_axis(bars)
    x = _scale(low, high, left, _WIDTH - right)
    parts = [_vertical(x(tick), top, bottom, _tick(tick), bottom + 16) for tick in ticks]
    for i, bar in enumerate(bars):
        y = top + row * i + 18
        parts.append(_text(left, y - 5, _shorten(bar.label), "start", title=bar.label))
        parts.append(
            f'<rect class="bar" x="{min(x(0), x(bar.value)):.1f}" y="{y}" width="{abs(x(bar.value) - x(0)):.1f}" height="18" '
            f'rx="2" style="--c:var(--series-{i % COLOURS})">{_title(f"{bar.label}: {bar.value:.3f}; {bar.origin}")}</rect>'
        )
        if bar.interval:
            a, b = (x(end) for end in bar.interval)
            title = _title(f"{bar.label}: 95% CI over seeds, {bar.interval[0]:.3f} to {bar.interval[1]:.3f}")
            parts.append(
                f'<path class="whisker" d="M{a:.1f} {y + 4}v10M{a:.1f} {y + 9}H{b:.1f}M{b:.1f} {y + 4}v10">{title}</path>'
            )
        parts += [
            f'<circle class="dot" cx="{x(value):.1f}" cy="{y + 9}" r="3.5">{_title(f"{value:.3f}; {run}")}</circle>'
            for value, run in bar.dots
        ]
        parts.append(_text(_WIDTH - right + 8, y + 13, f"{bar.value:.3f}", "start"))
    return _svg(parts, _WIDTH, bottom + 24, name)


def line_chart(lines: Sequence[Line], name: str, x_label: str) -> Markup:
    """Draw curves whose axes start at 0. The page adds the legend.

    Args:
        lines: one per variant; the mean curve is drawn over the curves of the seeds.
        name: accessible name of the chart.
        x_label: label of the x axis.

    Returns:
        An `<svg>` element.
    """
    left, right, top, bottom, height = 44.0, 12.0, 8.0, 44.0, 280.0
    (x_low, x_high, x_ticks), (y_low, y_high, y_ticks) = line_axes(lines)
    x = _scale(x_low, x_high, left, _WIDTH - right)
    y = _scale(y_low, y_high, height - bottom, top)
    parts = [_vertical(x(tick), top, height - bottom, _tick(tick), height - bottom + 18) for tick in x_ticks]
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{left:.1f} {y(tick):.1f}H{_WIDTH - right:.1f}"/>')
        parts.append(_text(left - 6, y(tick) + 4, _tick(tick), "end"))
    parts.append(_text((left + _WIDTH - right) / 2, height - 6, x_label, "middle"))
    for line in lines:
        style = f'style="--c:var(--series-{line.series % COLOURS})"{dash(line.series)}'
        for points, run in line.single:
            parts.append(
                f'<path class="seed" {style} d="{_path(points, x, y)}">{_title(f"{line.label}; {run}")}</path>'
            )
        parts.append(f'<path class="mean" {style} d="{_path(line.mean, x, y)}">{_title(line.label)}</path>')
        parts += [
            f'<circle class="point" {style} cx="{x(a):.1f}" cy="{y(b):.1f}" r="3">{_title(f"{line.label}: {b:.3f} at {a:g}")}'
            "</circle>"
            for a, b in line.mean
        ]
    return _svg(parts, _WIDTH, height, name)


def heat_map(gates: GateMap, name: str) -> Markup:
    """Draw gate activations as the opacity of cells, with the value of the last column at the right of each row.

    Args:
        gates: the activations, in [0, 1].
        name: accessible name of the chart.

    Returns:
        An `<svg>` element.
    """
    left, right, top, cell = 92.0, 44.0, 24.0, 22.0
    width = (_WIDTH - left - right) / len(gates.steps)
    parts, y, previous = [], top, ""
    for (gate, step), values in zip(gates.rows, gates.values, strict=True):
        if previous and gate != previous:
            y += 8
        previous = gate
        parts.append(_text(left - 6, y + 15, f"{gate} {step + 1}", "end"))
        for i, value in enumerate(values):
            if value is not None:
                title = _title(
                    f"{gates.side}, {gate} gate, recurrence step {step + 1}: {value:.3f} until step {gates.steps[i]}"
                )
                parts.append(
                    f'<rect class="cell" x="{left + i * width:.1f}" y="{y:.1f}" width="{width - 1:.1f}" height="{cell - 1}" '
                    f'fill-opacity="{value:.3f}">{title}</rect>'
                )
        last = values[-1]
        parts.append(_text(_WIDTH - right + 6, y + 15, "" if last is None else f"{last:.2f}", "start"))
        y += cell
    labelled = sorted({0, len(gates.steps) - 1})
    for i in labelled:
        anchor = "start" if i == 0 and len(labelled) > 1 else "end"
        at = left + i * width if anchor == "start" else left + (i + 1) * width
        parts.append(_text(at, top - 8, f"step {gates.steps[i]}", anchor))
    return _svg(parts, _WIDTH, y + 6, name)


def bar_axis(bars: Sequence[Bar]) -> tuple[float, float, list[float]]:
    """Compute the limits and ticks of a value axis that contains 0 and all values, intervals and dots of the bars."""
    ends = [v for bar in bars for v in (bar.value, *(bar.interval or ()), *(d for d, _ in bar.dots))]
    return axis(min(0.0, *ends), max(ends))


def line_axes(lines: Sequence[Line]) -> tuple[tuple[float, float, list[float]], tuple[float, float, list[float]]]:
    """Compute the limits and ticks of the x and y axes that contain 0 and all points; x ticks are whole numbers."""
    points = [point for line in lines for part in (line.mean, *(own for own, _ in line.single)) for point in part]
    return (
        axis(0.0, max(x for x, _ in points), min_step=1.0),
        axis(min(0.0, *(y for _, y in points)), max(y for _, y in points)),
    )


def axis(low: float, high: float, min_step: float = 0.0) -> tuple[float, float, list[float]]:
    """Compute round limits around a range, and about three to six round ticks.

    Args:
        low: smallest value.
        high: largest value.
        min_step: smallest distance between ticks.

    Returns:
        First tick, last tick, and all ticks.
    """
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step = max(min_step, step * next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return first * step, last * step, [i * step for i in range(first, last + 1)]


def dash(i: int) -> str:
    """Return the dash attribute of series `i`; empty for the first `COLOURS` series, which differ by colour."""
    return "" if i < COLOURS else f' stroke-dasharray="{(6, 2)[i // COLOURS % 2]} 3"'


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _path(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    return "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in points)


def _vertical(x: float, top: float, bottom: float, label: str, at: float) -> str:
    return f'<path class="grid" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>{_text(x, at, label, "middle")}'


def _text(x: float, y: float, text: str, anchor: str, title: str = "") -> str:
    tooltip = _title(title) if title and title != text else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}{tooltip}</text>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _shorten(label: str) -> str:
    return label if len(label) <= _MAX_LABEL_LENGTH else f"{label[: _MAX_LABEL_LENGTH - 1]}…"


def _tick(value: float) -> str:
    return f"{value:.4g}" if value else "0"


def _svg(parts: Sequence[str], width: float, height: float, name: str) -> Markup:
    content = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(name)}">{content}</svg>')
