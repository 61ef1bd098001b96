"""SVG charts: positions and sizes of marks, titles and axes."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from ret_lightning.report.charts import COLOURS, Bar, Line, axis, bar_axis, bar_chart, dash, heat_map, line_chart
from ret_lightning.report.training_logs import GateMap


def find_marks(chart: str, tag: str, kind: str) -> list[ElementTree.Element]:
    return [mark for mark in ElementTree.fromstring(chart).iter(tag) if mark.get("class") == kind]


def path_points(path: ElementTree.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split())) for pair in re.findall(r"[\d.]+ [\d.]+", path.get("d"))]


def test_bar_length_is_proportional_to_value() -> None:
    bars = [Bar("a", 0.2, (0.1, 0.3), [(0.15, "seed 1"), (0.25, "seed 2")], "run a"), Bar("b", 0.6, None, [], "run b")]
    chart = bar_chart(bars, "recall of <each>")
    short, long = find_marks(chart, "rect", "bar")
    assert float(long.get("width")) == pytest.approx(3 * float(short.get("width")), abs=0.3)
    assert float(short.get("x")) == float(long.get("x"))  # both start at 0
    assert long.findtext("title") == "b: 0.600; run b"
    assert len(find_marks(chart, "path", "whisker")) == 1
    (low, high), mean = (
        [float(dot.get("cx")) for dot in find_marks(chart, "circle", "dot")],
        float(short.get("x")) + float(short.get("width")),
    )
    assert (low + high) / 2 == pytest.approx(mean, abs=0.2)
    assert ElementTree.fromstring(chart).get("aria-label") == "recall of <each>"


def test_negative_bar_ends_at_zero() -> None:
    negative, positive = find_marks(
        bar_chart([Bar("a", -0.5, None, [], ""), Bar("b", 0.5, None, [], "")], "x"), "rect", "bar"
    )
    assert float(negative.get("x")) + float(negative.get("width")) == pytest.approx(float(positive.get("x")), abs=0.2)


def test_curve_passes_through_points() -> None:
    line = Line(
        "a", [(0, 0.0), (5, 0.5), (10, 1.0)], [([(0, 0.0), (10, 0.8)], "seed 1"), ([(0, 0.0), (10, 1.0)], "seed 2")], 0
    )
    chart = line_chart([line], "recall", "steps")
    (mean,) = find_marks(chart, "path", "mean")
    (x0, y0), (x1, y1), (x2, y2) = path_points(mean)
    assert (x0 + x2) / 2 == pytest.approx(x1, abs=0.1)
    assert (y0 + y2) / 2 == pytest.approx(y1, abs=0.1)
    assert y0 > y2  # the y axis of SVG points down
    lower, upper = (path_points(seed)[-1][1] for seed in find_marks(chart, "path", "seed"))
    assert (y0 - lower) / (y0 - upper) == pytest.approx(0.8, abs=0.01)
    titles = [point.findtext("title") for point in find_marks(chart, "circle", "point")]
    assert titles == ["a: 0.000 at 0", "a: 0.500 at 5", "a: 1.000 at 10"]


def test_heat_map_opacity_is_activation() -> None:
    gates = GateMap("query", [("text", 0), ("text", 1)], [10, 20], [[0.25, 1.0], [None, 0.5]])
    chart = heat_map(gates, "gates")
    cells = find_marks(chart, "rect", "cell")
    assert [cell.get("fill-opacity") for cell in cells] == ["0.250", "1.000", "0.500"]
    assert cells[2].findtext("title") == "query, text gate, recurrence step 2: 0.500 until step 20"
    assert cells[1].get("x") == cells[2].get("x")
    texts = [text.text for text in ElementTree.fromstring(chart).iter("text")]
    assert texts == ["text 1", "1.00", "text 2", "0.50", "step 10", "step 20"]


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [(0.0, 0.83, (0.0, 1.0)), (0.0, 41.0, (0.0, 50.0)), (-0.2, 0.3, (-0.2, 0.3)), (0.0, 0.0, (0.0, 0.2))],
)
def test_axis_limits_are_round(low: float, high: float, ends: tuple[float, float]) -> None:
    first, last, ticks = axis(low, high)
    assert first <= low + 1e-9
    assert last >= high - 1e-9
    assert (ticks[0], ticks[-1]) == pytest.approx((first, last))
    assert 2 <= len(ticks) <= 8
    if high > low:
        assert (first, last) == pytest.approx(ends)


def test_bar_axis_contains_intervals_and_dots() -> None:
    low, high, _ = bar_axis([Bar("a", 0.9, (0.8, 1.1), [(-0.1, "seed 1")], "")])
    assert low <= -0.1
    assert high >= 1.1


def test_repeated_colours_are_dashed() -> None:
    assert {dash(i) for i in range(COLOURS)} == {""}
    assert len({dash(0), dash(COLOURS), dash(2 * COLOURS)}) == 3


def test_long_label_is_escaped_and_shortened() -> None:
    label = "<b>&" + "x" * 100
    chart = ElementTree.fromstring(bar_chart([Bar(label, 0.5, None, [], "a & b")], "x"))
    (text,) = [text for text in chart.iter("text") if text.text.startswith("<b>&")]
    assert (len(text.text), text.findtext("title")) == (64, label)
