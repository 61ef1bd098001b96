"""The tables of all metrics that a run ends with on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from ret_lightning.training.evaluation import SubsetResult

NARROWEST = (
    110  # columns that the widest table needs; a narrower terminal wraps lines, which is better than cut figures
)


def metrics_tables(results: Mapping[str, SubsetResult], split: str) -> list[Table]:
    """A table of Recall@K and, where subsets have answers, one of pseudo recall@K.

    Each has one row a subset and one of means, and a column a K; the first one also has the sizes and what a random
    ranking would give at K = 5 (or the smallest K).

    Args:
        results: subset names to results.
        split: for the titles.
    """
    at = sorted(next(iter(results.values())).random_recall)
    reference = 5 if 5 in at else at[0]
    recall = Table(title=f"Recall@K, {split}")
    recall.add_column("subset")
    for name in ("queries", "passages", *(f"R@{k}" for k in at), f"random R@{reference}"):
        recall.add_column(name, justify="right")
    for name, result in results.items():
        values = [result.metrics[f"recall@{k}"] for k in at]
        sizes = [str(len(result.query_rows)), str(len(result.indexed_rows))]
        recall.add_row(name, *sizes, *_figures([*values, result.random_recall[reference]]))
    recall.add_section()
    means = [_mean([r.metrics[f"recall@{k}"] for r in results.values()]) for k in at]
    random = _mean([r.random_recall[reference] for r in results.values()])
    recall.add_row("mean", "", "", *_figures([*means, random]))

    answered = {name: r for name, r in results.items() if f"pseudo_recall@{at[0]}" in r.metrics}
    if not answered:
        return [recall]
    pseudo = Table(title=f"Pseudo recall@K, {split}")
    pseudo.add_column("subset")
    for k in at:
        pseudo.add_column(f"PR@{k}", justify="right")
    rows = {name: [r.metrics[f"pseudo_recall@{k}"] for k in at] for name, r in answered.items()}
    for name, values in rows.items():
        pseudo.add_row(name, *_figures(values))
    pseudo.add_section()
    pseudo.add_row("mean", *_figures([_mean(column) for column in zip(*rows.values(), strict=True)]))
    return [recall, pseudo]


def print_tables(tables: Sequence[Table]) -> None:
    """Prints to standard output."""
    console = Console()
    console.width = max(console.width, NARROWEST)
    for table in tables:
        console.print(table)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _figures(values: Sequence[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]
