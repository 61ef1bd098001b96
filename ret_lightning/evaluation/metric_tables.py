"""Build and print the tables of metrics at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from ret_lightning.data.layouts.base import PublishedResults, published_results
from ret_lightning.evaluation.evaluation_result import EvaluationResult, SubsetResult
from ret_lightning.evaluation.published_results import MAIN_MEANS
from ret_lightning.runtime.console import console, printing

# Characters that the widest table needs; a narrower terminal wraps lines instead of truncating values.
MIN_WIDTH = 132

ABBREVIATIONS = {"recall": "R", "pseudo_recall": "PR", "fractional_recall": "FR", "mrr": "MRR", "ndcg": "nDCG"}


def build_metrics_tables(
    result: EvaluationResult, bounds: Mapping[str, tuple[float, float]], split: str, note: str = ""
) -> list[Table]:
    """Build the tables of all metrics, the main metrics first.

    The first table has one row per main metric, with its interval and the size of the subset. If subsets of a
    publication are among the results, its published results follow, with a row for this run. The other tables have one
    row per subset and a row of means: recall@K with MRR, nDCG and the recall of a random ranking at K = 5 (or the
    smallest K); fractional recall@K if it differs from recall@K; pseudo recall@K if queries have answers. Main metrics
    are marked by a star.

    Args:
        result: the result of the evaluation.
        bounds: metric to its interval (low, high), as returned by `EvaluationResult.intervals`.
        split: the split, for the titles.
        note: text below each table, for example which weights were evaluated.

    Returns:
        The tables.
    """
    results, metrics = result.subsets, result.metrics
    at = sorted(next(iter(results.values())).random_recall)
    recall = [*(f"recall@{k}" for k in at), "mrr@10", "ndcg@10"]
    tables = [_build_main_table(results, metrics, bounds, split)]
    tables += [
        build_published_table(published, metrics)
        for published in published_results()
        if any(f"{subset}/{metric}" in metrics for subset, metric in published.metrics)
    ]
    title = f"Recall@K, MRR@10 and nDCG@10, {split}"
    tables.append(_build_table(results, metrics, recall, title, random_at=5 if 5 in at else at[0]))
    if any(metrics[f"mean/fractional_recall@{k}"] != metrics[f"mean/recall@{k}"] for k in at):
        tables.append(
            _build_table(results, metrics, [f"fractional_recall@{k}" for k in at], f"Fractional recall@K, {split}")
        )
    if any(f"mean/pseudo_recall@{k}" in metrics for k in at):
        tables.append(_build_table(results, metrics, [f"pseudo_recall@{k}" for k in at], f"Pseudo recall@K, {split}"))
    for table in tables if note else ():
        table.caption = "\n".join(filter(None, (table.caption, note)))
        table.caption_justify = "left"
    return tables


def build_published_table(published: PublishedResults, metrics: Mapping[str, float], name: str = "this run") -> Table:
    """Build a table of published results with a row for further metrics; missing metrics are left out.

    Args:
        published: the published results.
        metrics: `<subset>/<metric>` to value.
        name: label of the row.
    """
    columns = [i for i, (subset, metric) in enumerate(published.metrics) if f"{subset}/{metric}" in metrics]
    table = Table(title=f"Published results on {published.corpus}")
    table.add_column("model")
    for i in columns:
        subset, metric = published.metrics[i]
        table.add_column(f"{subset}\n{_abbreviate(metric)}", justify="right")
    for model, values in published.models.items():
        table.add_row(model, *_format_values([values[i] for i in columns]))
    table.add_section()
    table.add_row(name, *_format_values([metrics["/".join(published.metrics[i])] for i in columns]))
    return table


def print_tables(tables: Sequence[Table]) -> None:
    """Print tables to standard output.

    Args:
        tables: the tables, in order.
    """
    output = console()
    output.width = max(output.width, MIN_WIDTH)
    with printing():
        for table in tables:
            output.print(table)


def _build_main_table(
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
            table.add_row(
                name, *sizes, _abbreviate(metric), *_format_with_interval(f"{name}/{metric}", metrics, bounds)
            )
    table.add_section()
    for mean, metric in MAIN_MEANS.items():
        if f"mean/{mean}" in metrics:
            table.add_row(
                "mean", "", "", metric.replace("_", " "), *_format_with_interval(f"mean/{mean}", metrics, bounds)
            )
    return table


def _build_table(
    results: Mapping[str, SubsetResult],
    metrics: Mapping[str, float],
    columns: list[str],
    title: str,
    random_at: int | None = None,
) -> Table:
    """Build a table with one row per subset that has the first column, a row of means, and optionally the random recall."""
    table = Table(title=title, caption="* main metric", caption_justify="left")
    table.add_column("subset")
    for heading in (*map(_abbreviate, columns), *([f"random R@{random_at}"] if random_at else [])):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        if columns[0] in result.metrics:
            formatted = _format_values([result.metrics[metric] for metric in columns])
            marked = [
                ("*" if metric in result.main_metrics else "") + text
                for metric, text in zip(columns, formatted, strict=True)
            ]
            table.add_row(name, *marked, *(_format_values([result.random_recall[random_at]]) if random_at else []))
    table.add_section()
    means = [metrics[f"mean/{metric}"] for metric in columns]
    if random_at:
        means.append(sum(result.random_recall[random_at] for result in results.values()) / len(results))
    table.add_row("mean", *_format_values(means))
    return table


def _format_with_interval(
    key: str, metrics: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]
) -> tuple[str, str]:
    low, high = bounds[key]
    return f"{metrics[key]:.3f}", f"{low:.3f} to {high:.3f}"


def _abbreviate(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{ABBREVIATIONS[name]}@{k}"


def _format_values(values: Sequence[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]
