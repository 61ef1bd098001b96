"""The tables of all metrics that a run ends with on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from ret_lightning.data.layouts.base import PublishedResults, published_results
from ret_lightning.evaluation.evaluation_result import EvaluationResult, SubsetResult
from ret_lightning.evaluation.published_results import MAIN_MEANS
from ret_lightning.runtime.console import console, printing

# Columns that the widest table needs; a narrower terminal wraps lines, which is better than cut figures.
NARROWEST = 132

SHORT = {"recall": "R", "pseudo_recall": "PR", "fractional_recall": "FR", "mrr": "MRR", "ndcg": "nDCG"}


def metrics_tables(
    result: EvaluationResult, bounds: Mapping[str, tuple[float, float]], split: str, note: str = ""
) -> list[Table]:
    """What to report first, then all metrics.

    The first table has a row a main metric with its interval and the size of the subset; then, where subsets of the paper
    are among the results, the paper's table with a row of this run. The others have one row a subset and one of means, and a
    column a metric: Recall@K with MRR, nDCG and what a random ranking would give at K = 5 (or the smallest K), fractional
    recall@K where it differs from recall@K, and pseudo recall@K where subsets have answers; main metrics carry a star.

    Args:
        result: of the evaluation.
        bounds: its `intervals`.
        split: for the titles.
        note: below each table: which weights the metrics are of.
    """
    results, metrics = result.subsets, result.metrics
    at = sorted(next(iter(results.values())).random_recall)
    recall = [*(f"recall@{k}" for k in at), "mrr@10", "ndcg@10"]
    tables = [_main_table(results, metrics, bounds, split)]
    for published in published_results():
        if any(f"{subset}/{metric}" in metrics for subset, metric in published.metrics):
            tables.append(published_table(published, metrics))
    title = f"Recall@K, MRR@10 and nDCG@10, {split}"
    tables.append(_all(results, metrics, recall, title, random_at=5 if 5 in at else at[0]))
    if any(metrics[f"mean/fractional_recall@{k}"] != metrics[f"mean/recall@{k}"] for k in at):
        tables.append(_all(results, metrics, [f"fractional_recall@{k}" for k in at], f"Fractional recall@K, {split}"))
    if any(f"mean/pseudo_recall@{k}" in metrics for k in at):
        tables.append(_all(results, metrics, [f"pseudo_recall@{k}" for k in at], f"Pseudo recall@K, {split}"))
    for table in tables if note else ():
        table.caption = "\n".join(filter(None, (table.caption, note)))
        table.caption_justify = "left"
    return tables


def published_table(published: PublishedResults, metrics: Mapping[str, float], name: str = "this one") -> Table:
    """The table of a publication with one more row, of these metrics; columns that these lack are left out.

    Args:
        published: what it reports.
        metrics: `<subset>/<metric>` to a value.
        name: of the row.
    """
    shown = [i for i, (subset, metric) in enumerate(published.metrics) if f"{subset}/{metric}" in metrics]
    table = Table(title=f"Next to the published results on {published.corpus}")
    table.add_column("model")
    for i in shown:
        subset, metric = published.metrics[i]
        table.add_column(f"{subset}\n{_short(metric)}", justify="right")
    for model, values in published.models.items():
        table.add_row(model, *_figures([values[i] for i in shown]))
    table.add_section()
    table.add_row(name, *_figures([metrics["/".join(published.metrics[i])] for i in shown]))
    return table


def print_tables(tables: Sequence[Table]) -> None:
    """Prints to standard output."""
    shown = console()
    shown.width = max(shown.width, NARROWEST)
    with printing():
        for table in tables:
            shown.print(table)


def _main_table(
    results: Mapping[str, SubsetResult],
    metrics: Mapping[str, float],
    bounds: Mapping[str, tuple[float, float]],
    split: str,
) -> Table:
    table = Table(title=f"Main metrics, {split}", caption="intervals: bootstrap over queries", caption_justify="left")
    for name in ("subset", "queries", "passages", "metric", "value", "95 % interval"):
        table.add_column(name, justify="left" if name in ("subset", "metric") else "right")
    for name, result in results.items():
        sizes = [str(len(result.query_rows)), str(len(result.indexed_rows))]
        if not result.main_metrics:  # its K is not in evaluation.recall_at
            table.add_row(name, *sizes, "", "", "")
        for metric in result.main_metrics:
            table.add_row(name, *sizes, _short(metric), *_with_interval(f"{name}/{metric}", metrics, bounds))
    table.add_section()
    for mean, metric in MAIN_MEANS.items():
        if f"mean/{mean}" in metrics:
            table.add_row("mean", "", "", metric.replace("_", " "), *_with_interval(f"mean/{mean}", metrics, bounds))
    return table


def _all(
    results: Mapping[str, SubsetResult],
    metrics: Mapping[str, float],
    columns: list[str],
    title: str,
    random_at: int | None = None,
) -> Table:
    """A row for each subset that has the first of the columns, and one of means; last, if wanted, the recall by chance."""
    table = Table(title=title, caption="* main metric", caption_justify="left")
    table.add_column("subset")
    for heading in (*map(_short, columns), *([f"random R@{random_at}"] if random_at else [])):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        if columns[0] in result.metrics:
            figures = _figures([result.metrics[metric] for metric in columns])
            marked = [
                ("*" if metric in result.main_metrics else "") + figure
                for metric, figure in zip(columns, figures, strict=True)
            ]
            table.add_row(name, *marked, *(_figures([result.random_recall[random_at]]) if random_at else []))
    table.add_section()
    means = [metrics[f"mean/{metric}"] for metric in columns]
    if random_at:
        means.append(sum(result.random_recall[random_at] for result in results.values()) / len(results))
    table.add_row("mean", *_figures(means))
    return table


def _with_interval(
    key: str, metrics: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]
) -> tuple[str, str]:
    low, high = bounds[key]
    return f"{metrics[key]:.3f}", f"{low:.3f} to {high:.3f}"


def _short(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{SHORT[name]}@{k}"


def _figures(values: Sequence[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]
