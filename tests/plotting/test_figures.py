"""Literal rendering of texts from data and config in figures."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import pytest

from ret_lightning.plotting.figures import literal_figure
from ret_lightning.training.callbacks import gate_maps
from ret_lightning.training.callbacks.curves import draw_subsets, format_axes

# Texts that mathtext rejects or parses, that legends omit, or that no font contains.
NAMES = ["$$", "a$x_1$b", "$\\frac$", "_private", "%", "\\", "\U0010fffd", "東京", "<b>&amp;"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("usetex", [False, True])
def test_names_are_drawn_literally(name: str, usetex: bool, tmp_path: Path) -> None:
    points = [{"epoch": 1.0, "step": 5.0, "recall": {name: 0.5}}]
    with matplotlib.rc_context({"text.usetex": usetex}), warnings.catch_warnings():
        warnings.simplefilter("error")
        with literal_figure([name]) as figure:
            axes = figure.subplots()
            draw_subsets(axes, points, "recall")
            axes.set_yticks([0], [name])
            axes.set(title=name, xlabel=name)
            format_axes(axes, points)
            figure.savefig(tmp_path / "figure.png")
            labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [name, "mean"]
    assert axes.get_yticklabels()[0].get_text() == name


def test_gate_maps_draw_names_literally(tmp_path: Path) -> None:
    gate_maps.draw_gate_maps({"$$": {"$x$": [0.25, 0.75]}}, tmp_path / "gates.png")
    assert (tmp_path / "gates.png").read_bytes().startswith(b"\x89PNG")
