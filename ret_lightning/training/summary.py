"""The table of all metrics that a run ends with on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from ret_lightning.training.evaluation import SubsetResult


def metrics_table(results: Mapping[str, SubsetResult], title: str, shown_at: Sequence[int] = (1, 5, 10)) -> Table:
    """One row a subset and one of means: sizes, recall, pseudo recall, and what a random ranking would give.

    Args:
        results: subset names to results.
        title: above the table.
        shown_at: the K to show, as far as they were computed.
    """
    first = next(iter(results.values()))
    at = [k for k in shown_at if k in first.random_recall] or [max(first.random_recall)]
    reference = 5 if 5 in at else at[0]
    columns = [*(f"recall@{k}" for k in at), *(f"pseudo_recall@{k}" for k in at)]
    columns = [c for c in columns if any(c in r.metrics for r in results.values())]
    table = Table(title=title)
    table.add_column("subset")
    for name in ("queries", "passages", *columns, f"random recall@{reference}"):
        table.add_column(name.replace("pseudo_recall", "pseudo"), justify="right")
    for name, result in results.items():
        values = [_figure(result.metrics.get(column)) for column in columns]
        sizes = [str(len(result.query_rows)), str(len(result.indexed_rows))]
        table.add_row(name, *sizes, *values, _figure(result.random_recall[reference]))
    means = [_mean([r.metrics[c] for r in results.values() if c in r.metrics]) for c in columns]
    table.add_section()
    table.add_row(
        "mean", "", "", *map(_figure, means), _figure(_mean([r.random_recall[reference] for r in results.values()]))
    )
    return table


def print_table(table: Table) -> None:
    """Prints to standard output, in a width that no column is cut in."""
    console = Console()
    console.width = max(console.width, 140)
    console.print(table)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
