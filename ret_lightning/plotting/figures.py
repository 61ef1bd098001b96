"""Matplotlib figures that render texts from data and config literally."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def literal_figure(texts: Iterable[str] = (), **options: Any) -> Iterator[Figure]:
    """Create an empty figure; draw into it and save it within the `with` block.

    Texts are not parsed as TeX or mathtext. A character that no installed font contains is rendered as a box.

    Args:
        texts: texts from data or config that will be rendered; used to choose fonts.
        options: keyword arguments of `matplotlib.figure.Figure`.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ret_lightning.plotting.font_fallback import families_for

    literal: Any = {"text.parse_math": False, "text.usetex": False, "font.family": families_for(texts)}
    with matplotlib.rc_context(literal), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        figure = Figure(layout="constrained", **options)
        FigureCanvasAgg(figure)
        yield figure
