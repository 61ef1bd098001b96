"""Values that runs logged during training, read from their CSV logs: curves, gate activations and throughput."""

from __future__ import annotations

import csv
import math
import re
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ret_lightning.config.targets.renamed_keys import current_metric
from ret_lightning.report.run_folders import Run

CSV_FILE = "csv/metrics.csv"
_GATE = re.compile(r"gate/(query|passage)/(forget|text|image)/step_(\d+)")


@dataclass(frozen=True)
class TrainingLog:
    """The CSV log of a run.

    Attributes:
        series: name to (optimizer steps, value) pairs, in the order of logging; values that are not finite are left out.
    """

    series: dict[str, list[tuple[int, float]]]


def read_log(run: Run) -> TrainingLog:
    """Read the CSV log of a run; the result is empty if the run wrote none."""
    series: dict[str, list[tuple[int, float]]] = {}
    try:
        with (run.folder / CSV_FILE).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = _number(row.pop("step", None))
                for name, text in row.items():
                    value = _number(text)
                    if step is not None and value is not None:
                        # The log counts steps from 0: a value of step 0 follows one optimizer step.
                        series.setdefault(current_metric(name), []).append((int(step) + 1, value))
    except (OSError, csv.Error, UnicodeDecodeError):
        return TrainingLog({})
    return TrainingLog(series)


def validation_curve(log: TrainingLog, metric: str) -> list[tuple[int, float]]:
    """Return the (optimizer steps, value) points of a metric on the validation queries."""
    return log.series.get(f"val/{metric}", [])


def loss_curves(logs: Sequence[TrainingLog], intervals: int = 60) -> list[list[tuple[int, float]]]:
    """Return training losses over optimizer steps: the means of the logged values in intervals of equal length.

    Args:
        logs: of a variant's runs. The intervals are the same for all, up to the last step of the shortest run, so that the
            curves can be averaged.
        intervals: largest number of points.

    Returns:
        (last optimizer step, mean loss) of each interval with logged values, for each log; empty if it has no losses.
    """
    losses = [log.series.get("train/loss", []) for log in logs]
    last = min((max(step for step, _ in points) for points in losses if points), default=0)
    ends = _interval_ends(last, intervals)
    means = [_interval_means([point for point in points if point[0] <= last], ends) for points in losses]
    return [[(end, mean) for end, mean in zip(ends, own, strict=True) if mean is not None] for own in means]


def median_throughput(log: TrainingLog) -> float | None:
    """Return the median of the logged pairs per second, or None if none was logged."""
    values = [value for _, value in log.series.get("train/samples_per_second", [])]
    return statistics.median(values) if values else None


@dataclass(frozen=True)
class GateMap:
    """Gate activations of one tower over training.

    Attributes:
        side: `query` or `passage`.
        rows: (gate, recurrence step) of each row.
        steps: last optimizer step of each column, ascending.
        values: (rows, columns), means over seeds; None where nothing was logged.
    """

    side: str
    rows: list[tuple[str, int]]
    steps: list[int]
    values: list[list[float | None]]


def average_gate_maps(logs: Sequence[TrainingLog], columns: int = 12) -> list[GateMap]:
    """Average the logged gate activations over seeds and over intervals of training.

    Args:
        logs: of a variant's runs.
        columns: number of intervals of equal length that training is divided into.

    Returns:
        One map per tower that logged gate activations.
    """
    found: dict[str, dict[tuple[str, int], list[tuple[int, float]]]] = {}
    for log in logs:
        for name, points in log.series.items():
            if match := _GATE.fullmatch(name):
                found.setdefault(match[1], {}).setdefault((match[2], int(match[3])), []).extend(points)
    maps = []
    for side in ("query", "passage"):
        if side not in found:
            continue
        last = max(step for points in found[side].values() for step, _ in points)
        ends = _interval_ends(last, columns)
        rows = sorted(found[side], key=lambda row: (("text", "image", "forget").index(row[0]), row[1]))
        values = [_interval_means(found[side][row], ends) for row in rows]
        logged = [i for i in range(len(ends)) if any(line[i] is not None for line in values)]
        maps.append(GateMap(side, rows, [ends[i] for i in logged], [[line[i] for i in logged] for line in values]))
    return maps


def _interval_ends(last: int, limit: int) -> list[int]:
    """Return the last steps of at most `limit` intervals of equal length; empty if there are no steps."""
    count = min(limit, last)
    return [round(last * (i + 1) / count) for i in range(count)]


def _interval_means(points: Sequence[tuple[int, float]], ends: Sequence[int]) -> list[float | None]:
    intervals: list[list[float]] = [[] for _ in ends]
    for step, value in points:
        intervals[bisect_left(ends, step)].append(value)
    return [statistics.fmean(values) if values else None for values in intervals]


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else math.nan
    except (ValueError, TypeError):
        return None
    return value if math.isfinite(value) else None
