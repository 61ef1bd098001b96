"""Result files of an evaluation, for ret-train and ret-evaluate."""

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
    """Write the rankings and confidence intervals of an evaluation.

    The caller writes `metrics.json` last, because it marks a finished run.

    Args:
        result: result of the evaluation.
        split: evaluated split.
        folder: run folder.
        note: description of the evaluated weights, for the tables.

    Returns:
        The metrics, `<subset>/<metric>` to a value, and the tables to print.
    """
    bounds = result.intervals()
    result.write_rankings(folder / RANKINGS_FOLDER)
    tables = build_metrics_tables(result, bounds, split, note)
    write_json(folder / INTERVALS_FILE, bounds)
    return result.metrics, tables
