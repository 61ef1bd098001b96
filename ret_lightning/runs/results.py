"""What an evaluation leaves in its folder, whichever command asked for it; metrics.json comes after."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ret_lightning.data.types import Split
from ret_lightning.evaluation.callback import RetrievalEvaluation
from ret_lightning.evaluation.metric_tables import metrics_tables
from ret_lightning.runtime.run_layout import INTERVALS_FILE, RANKINGS_FOLDER, write_json


def write_results(
    evaluation: RetrievalEvaluation, split: Split, folder: Path, note: str
) -> tuple[dict[str, float], list[Table]]:
    """Write rankings and intervals.

    Args:
        evaluation: has evaluated the split.
        split: which.
        folder: the run's.
        note: which weights the metrics are of, for the tables.

    Returns:
        The metrics, `<subset>/<metric>` to a value, for `metrics.json`, which its caller writes last; and the tables, to print
        after it.
    """
    metrics, bounds = evaluation.flat_metrics(split), evaluation.flat_intervals(split)
    evaluation.write_rankings(split, folder / RANKINGS_FOLDER)
    tables = metrics_tables(evaluation.results[split], metrics, bounds, split, note)
    write_json(folder / INTERVALS_FILE, bounds)
    return metrics, tables
