"""What an evaluation leaves in its folder, whichever command asked for it; metrics.json comes after."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ret_lightning.data.types import Split
from ret_lightning.evaluation.evaluation_result import EvaluationResult
from ret_lightning.evaluation.metric_tables import build_metrics_tables
from ret_lightning.runtime.run_layout import INTERVALS_FILE, RANKINGS_FOLDER, write_json


def write_results(
    result: EvaluationResult, split: Split, folder: Path, note: str
) -> tuple[dict[str, float], list[Table]]:
    """Write rankings and intervals.

    Args:
        result: of the evaluation.
        split: that it is of.
        folder: the run's.
        note: which weights the metrics are of, for the tables.

    Returns:
        The metrics, `<subset>/<metric>` to a value, for `metrics.json`, which its caller writes last; and the tables, to print
        after it.
    """
    bounds = result.intervals()
    result.write_rankings(folder / RANKINGS_FOLDER)
    tables = build_metrics_tables(result, bounds, split, note)
    write_json(folder / INTERVALS_FILE, bounds)
    return result.metrics, tables
