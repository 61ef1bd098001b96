"""Charts as inline SVG: drawn with the page's own colours, so that they are legible in light, in dark and on paper.

Each returns an `<svg>` element whose marks carry a `<title>` saying what they show and of which run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from markupsafe import Markup, escape

from ret_lightning.report.training_logs import GateMap

Scale: TypeAlias = Callable[[float], float]

COLOURS = 8  # of the page's palette, `--series-0` to `--series-7`; then they come again with dashes
_WIDTH = 480
_LONGEST = 64  # characters of a label; its tooltip has all of it


@dataclass(frozen=True)
class Bar:
    """A bar with its whiskers and dots: a mean, its interval or None, and single values with what they are of."""

    label: str
    value: float
    interval: tuple[float, float] | None
    dots: list[tuple[float, str]]
    origin: str


@dataclass(frozen=True)
class Line:
    """A mean curve over the single ones behind it, each with what it is of."""

    label: str
    mean: list[tuple[float, float]]
    single: list[tuple[list[tuple[float, float]], str]]


def bar_chart(bars: Sequence[Bar], name: str) -> Markup:
    """Horizontal bars from 0, one below the other, each under its label."""
    left, right, row, top = 16.0, 52.0, 42, 4
    bottom = top + row * len(bars)
    ends = [v for bar in bars for v in (bar.value, *(bar.interval or ()), *(d for d, _ in bar.dots))]
    low, high, ticks = _axis(min(0.0, *ends), max(ends))
    x = _scale(low, high, left, _WIDTH - right)
    parts = [_vertical(x(tick), top, bottom, _tick(tick), bottom + 16) for tick in ticks]
    for i, bar in enumerate(bars):
        y = top + row * i + 18
        parts.append(_text(left, y - 5, _cut(bar.label), "start", title=bar.label))
        parts.append(
            f'<rect class="bar" x="{min(x(0), x(bar.value)):.1f}" y="{y}" width="{abs(x(bar.value) - x(0)):.1f}" height="18" '
            f'rx="2" style="--c:var(--series-{i % COLOURS})">{_title(f"{bar.label}: {bar.value:.3f}; {bar.origin}")}</rect>'
        )
        if bar.interval:
            a, b = (x(end) for end in bar.interval)
            told = _title(f"{bar.label}: 95 % interval over seeds, {bar.interval[0]:.3f} to {bar.interval[1]:.3f}")
            parts.append(
                f'<path class="whisker" d="M{a:.1f} {y + 4}v10M{a:.1f} {y + 9}H{b:.1f}M{b:.1f} {y + 4}v10">{told}</path>'
            )
        parts += [
            f'<circle class="dot" cx="{x(value):.1f}" cy="{y + 9}" r="3.5">{_title(f"{value:.3f}; {what}")}</circle>'
            for value, what in bar.dots
        ]
        parts.append(_text(_WIDTH - right + 8, y + 14, f"{bar.value:.3f}", "start"))
    return _svg(parts, _WIDTH, bottom + 24, name)


def line_chart(lines: Sequence[Line], name: str, x_label: str) -> Markup:
    """Curves from 0 upwards, over a number on the x axis; the legend is the page's."""
    left, right, top, bottom, height = 44.0, 12.0, 8.0, 44.0, 280.0
    points = [point for line in lines for part in (line.mean, *(own for own, _ in line.single)) for point in part]
    x_low, x_high, x_ticks = _axis(0.0, max(x for x, _ in points), least=1.0)
    y_low, y_high, y_ticks = _axis(min(0.0, *(y for _, y in points)), max(y for _, y in points))
    x = _scale(x_low, x_high, left, _WIDTH - right)
    y = _scale(y_low, y_high, height - bottom, top)
    parts = [_vertical(x(tick), top, height - bottom, _tick(tick), height - bottom + 18) for tick in x_ticks]
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{left:.1f} {y(tick):.1f}H{_WIDTH - right:.1f}"/>')
        parts.append(_text(left - 6, y(tick) + 4, _tick(tick), "end"))
    parts.append(_text((left + _WIDTH - right) / 2, height - 6, x_label, "middle"))
    for i, line in enumerate(lines):
        style = f'style="--c:var(--series-{i % COLOURS})"{dash(i)}'
        for own, what in line.single:
            parts.append(f'<path class="seed" {style} d="{_path(own, x, y)}">{_title(f"{line.label}; {what}")}</path>')
        parts.append(f'<path class="mean" {style} d="{_path(line.mean, x, y)}">{_title(line.label)}</path>')
        parts += [
            f'<circle class="point" {style} cx="{x(a):.1f}" cy="{y(b):.1f}" r="3">{_title(f"{line.label}: {b:.3f} at {a:g}")}'
            "</circle>"
            for a, b in line.mean
        ]
    return _svg(parts, _WIDTH, height, name)


def heat_map(gates: GateMap, name: str) -> Markup:
    """Gate activations from 0 to 1 as ink from none to full, rows of a gate together; the last column's values at the right."""
    left, right, top, cell = 92.0, 44.0, 24.0, 22.0
    wide = (_WIDTH - left - right) / len(gates.steps)
    parts, y, before = [], top, ""
    for (gate, step), values in zip(gates.rows, gates.values, strict=True):
        if before and gate != before:
            y += 8
        before = gate
        parts.append(_text(left - 6, y + 15, f"{gate} {step + 1}", "end"))
        for i, value in enumerate(values):
            if value is not None:
                told = _title(
                    f"{gates.side}, {gate} gate, recurrence step {step + 1}: {value:.3f} until step {gates.steps[i]}"
                )
                parts.append(
                    f'<rect class="cell" x="{left + i * wide:.1f}" y="{y:.1f}" width="{wide - 1:.1f}" height="{cell - 1}" '
                    f'fill-opacity="{value:.3f}">{told}</rect>'
                )
        last = values[-1]
        parts.append(_text(_WIDTH - right + 6, y + 15, "" if last is None else f"{last:.2f}", "start"))
        y += cell
    shown = sorted({0, len(gates.steps) - 1})
    for i in shown:
        anchor = "start" if i == 0 and len(shown) > 1 else "end"
        at = left + i * wide if anchor == "start" else left + (i + 1) * wide
        parts.append(_text(at, top - 8, f"step {gates.steps[i]}", anchor))
    return _svg(parts, _WIDTH, y + 6, name)


def dash(i: int) -> str:
    """The attribute that tells the second and third round through the colours from the first."""
    return "" if i < COLOURS else f' stroke-dasharray="{(6, 2)[i // COLOURS % 2]} 3"'


def _axis(low: float, high: float, least: float = 0.0) -> tuple[float, float, list[float]]:
    """Round limits around a range, and round ticks at least `least` apart, about three to six of them."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step = max(least, step * next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return first * step, last * step, [i * step for i in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    """What takes `low` to `start` and `high` to `end`."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _path(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    return "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in points)


def _vertical(x: float, top: float, bottom: float, label: str, at: float) -> str:
    return f'<path class="grid" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>{_text(x, at, label, "middle")}'


def _text(x: float, y: float, text: str, anchor: str, title: str = "") -> str:
    told = _title(title) if title and title != text else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}{told}</text>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _cut(label: str) -> str:
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"


def _tick(value: float) -> str:
    return f"{value:.4g}" if value else "0"


def _svg(parts: Sequence[str], width: float, height: float, name: str) -> Markup:
    inside = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(name)}">{inside}</svg>')
