"""What runs logged on the way, from the rows of their CSV logs: curves, gate activations and speed."""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ret_lightning.config.targets.renamed_keys import current_metric
from ret_lightning.report.run_folders import Run

CSV_FILE = "csv/metrics.csv"
_GATE = re.compile(r"gate/(query|passage)/(forget|text|image)/step_(\d+)")


@dataclass(frozen=True)
class Log:
    """A run's log.

    Attributes:
        series: name to its (optimiser steps, value) pairs, in the order of logging; no value that is not a number.
    """

    series: dict[str, list[tuple[int, float]]]


def read_log(run: Run) -> Log:
    """The log of a run; an empty one where it wrote no CSV."""
    series: dict[str, list[tuple[int, float]]] = {}
    try:
        with (run.folder / CSV_FILE).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = _number(row.pop("step", None))
                for name, text in row.items():
                    value = _number(text)
                    if step is not None and value is not None:
                        # Steps are counted from 0: what is logged in step 0 has one step behind it.
                        series.setdefault(current_metric(name), []).append((int(step) + 1, value))
    except (OSError, csv.Error, UnicodeDecodeError):
        return Log({})
    return Log(series)


def curve(log: Log, metric: str) -> list[tuple[int, float]]:
    """A metric on the validation queries over the optimiser steps."""
    return log.series.get(f"val/{metric}", [])


def speed(log: Log) -> float | None:
    """Pairs a second, the median of what was logged."""
    values = [value for _, value in log.series.get("train/samples_per_second", [])]
    return statistics.median(values) if values else None


@dataclass(frozen=True)
class GateMap:
    """The activations of the gates of one side over training.

    Attributes:
        side: `query` or `passage`.
        rows: (gate, step of the recurrence) of each row.
        steps: the optimiser steps of the columns, ascending.
        values: (rows, columns), means over seeds; None where nothing was logged.
    """

    side: str
    rows: list[tuple[str, int]]
    steps: list[int]
    values: list[list[float | None]]


def logged_gate_maps(logs: Sequence[Log], columns: int = 12) -> list[GateMap]:
    """A map a side; none where no gate was logged.

    Args:
        logs: of a variant's runs.
        columns: training is cut into as many stretches of equal length; a cell is the mean over its stretch and the seeds.
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
        count = min(columns, last)
        ends = [round(last * (i + 1) / count) for i in range(count)]
        rows = sorted(found[side], key=lambda row: (("text", "image", "forget").index(row[0]), row[1]))
        values = [_cells(found[side][row], ends) for row in rows]
        logged = [i for i in range(count) if any(line[i] is not None for line in values)]
        maps.append(GateMap(side, rows, [ends[i] for i in logged], [[line[i] for i in logged] for line in values]))
    return maps


def _cells(points: Sequence[tuple[int, float]], ends: Sequence[int]) -> list[float | None]:
    cells: list[list[float]] = [[] for _ in ends]
    for step, value in points:
        cells[next(i for i, end in enumerate(ends) if step <= end)].append(value)
    return [statistics.fmean(cell) if cell else None for cell in cells]


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else math.nan
    except (ValueError, TypeError):
        return None
    return value if math.isfinite(value) else None
