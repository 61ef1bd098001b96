"""results.png of a report."""

from __future__ import annotations

from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ret_lightning.report import results_figure
from ret_lightning.report.charts import Bar, Line
from ret_lightning.report.results_figure import draw_results

BARS = [
    Bar("gate=lstm", 0.25, (0.2, 0.3), [(0.2, "seed 1"), (0.3, "seed 2")], ""),
    Bar("gate=$x_1$", 0.5, None, [], ""),
]
CURVES = [Line("gate=lstm", [(1.0, 0.1), (2.0, 0.2)], [], 0)]


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return a substitute for the content of a report, with given bars and curves."""
    content = SimpleNamespace(metric="mean/recall@5", bars=BARS, curves=CURVES)
    monkeypatch.setattr(results_figure, "metric_bars", lambda given: given.bars)
    monkeypatch.setattr(results_figure, "metric_curves", lambda given: given.curves)
    return content


def draw_image(content: SimpleNamespace) -> Image.Image:
    return Image.open(BytesIO(draw_results(content)))


def test_figure_is_deterministic(content: SimpleNamespace) -> None:
    png = draw_results(content)
    assert png.startswith(b"\x89PNG")
    assert draw_results(content) == png
    content.bars = [Bar("gate=lstm", 0.75, None, [], ""), BARS[1]]
    assert draw_results(content) != png


def test_figure_without_curves_is_narrower(content: SimpleNamespace) -> None:
    wide = draw_image(content)
    content.curves = []
    assert draw_image(content).width < wide.width


def test_bar_length_is_proportional_to_value(content: SimpleNamespace) -> None:
    """Bars are found by their colour: C0 and C1 with 55 % opacity on white."""
    content.curves, content.bars = [], [Bar("a", 0.2, None, [], ""), Bar("b", 0.8, None, [], "")]
    pixels = np.asarray(draw_image(content).convert("RGB")).astype(int)

    def length(colour: tuple[int, int, int]) -> int:
        mixed = [round(255 - 0.55 * (255 - c)) for c in colour]
        return int((np.abs(pixels - mixed).max(axis=2) <= 2).any(axis=0).sum())

    assert length((255, 127, 14)) / length((31, 119, 180)) == pytest.approx(4, rel=0.1)
