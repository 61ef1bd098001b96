"""Comparison of variants by one metric: over seeds, and query by query with the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ret_lightning.data.types import EvaluationSubset
from ret_lightning.errors import DataError
from ret_lightning.report.per_query_results import PerQueryScores, resolve_mean_metric, score_queries
from ret_lightning.report.run_folders import Run
from ret_lightning.report.statistics import Summary, holm_correction, randomisation_test, summarise, welch_interval
from ret_lightning.report.variants import Variant
from ret_lightning.runtime.progress import progress_bar


@dataclass(frozen=True)
class VariantScores:
    """The values of a metric for every query of a variant.

    Attributes:
        by_run: subset to the scores of each run, in the order of the variant's runs.
        means: subset to the means over runs, (Nq,), in the order of the first run's queries.
    """

    by_run: dict[str, list[PerQueryScores]]
    means: dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """A row of the results table.

    Attributes:
        variant: the variant that the row describes.
        summary: the metric over seeds.
        difference: mean of the variant minus mean of the baseline; None for the baseline itself.
        difference_interval: 95 % confidence interval of the difference over seeds; None if either variant has one seed.
        p: p value of the paired test over queries; None if there was no test.
        p_corrected: p value with Holm's correction for the number of comparisons in the table.
        untested: why there was no test; empty otherwise.
    """

    variant: Variant
    summary: Summary
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    p: float | None = None
    p_corrected: float | None = None
    untested: str = ""


def score_variants(
    variants: Sequence[Variant], metric: str, data: Callable[[], Mapping[str, EvaluationSubset]]
) -> dict[str, VariantScores | str]:
    """Compute a metric for every query of each variant.

    Args:
        variants: variants whose runs all have the metric.
        metric: `<subset>/<name>` or `mean/<name>`.
        data: returns the texts of each subset; called for pseudo recall only.

    Returns:
        Fingerprint of a variant to its scores, or to the reason why they cannot be computed.
    """
    runs = sum(len(variant.runs) for variant in variants)
    found: dict[str, VariantScores | str] = {}
    with progress_bar(total=runs, desc="reading rankings", delay=3) as progress:
        for variant in variants:
            by_run: dict[str, list[PerQueryScores]] = {}
            try:
                for run in variant.runs:
                    for subset, scores in _score_run(run, metric, data).items():
                        by_run.setdefault(subset, []).append(scores)
                    progress.update()
                means = {subset: _mean_over_runs(subset, scores, variant) for subset, scores in by_run.items()}
                found[variant.fingerprint] = VariantScores(by_run, means)
            except DataError as error:
                found[variant.fingerprint] = str(error)
    return found


def compare(
    variants: Sequence[Variant], baseline: Variant, metric: str, scores: Mapping[str, VariantScores | str]
) -> list[Row]:
    """Compare each variant with the baseline.

    The test pairs queries by id and compares their means over the seeds of each side. It shows whether these trained models
    would differ on other queries of the same kind, not whether training with other seeds would show the same difference.

    Args:
        variants: all variants, the baseline included.
        baseline: one of them.
        metric: that all runs have.
        scores: fingerprint of a variant to its scores, from `score_variants`.

    Returns:
        One row per variant, in their order.
    """
    baseline_values = [run.metrics[metric] for run in baseline.runs]
    rows: list[Row] = []
    for variant in variants:
        values = [run.metrics[metric] for run in variant.runs]
        summary = summarise(values)
        if variant is baseline:
            rows.append(Row(variant, summary))
            continue
        p, untested = _test(scores[variant.fingerprint], scores[baseline.fingerprint])
        difference = summary.mean - summarise(baseline_values).mean
        rows.append(Row(variant, summary, difference, welch_interval(values, baseline_values), p, None, untested))
    corrected = iter(holm_correction([row.p for row in rows if row.p is not None]))
    return [row if row.p is None else replace(row, p_corrected=next(corrected)) for row in rows]


def _score_run(run: Run, metric: str, data: Callable[[], Mapping[str, EvaluationSubset]]) -> dict[str, PerQueryScores]:
    return {
        subset: score_queries(run, subset, name, data().get(subset) if name.startswith("pseudo_recall") else None)
        for subset, name in resolve_mean_metric(metric, run.metrics).items()
    }


def _mean_over_runs(subset: str, scores: Sequence[PerQueryScores], variant: Variant) -> np.ndarray:
    first = scores[0]
    for run, other in zip(variant.runs, scores, strict=True):
        _check_same_queries(first, other, f"{run.folder}: {subset}", str(variant.runs[0].folder))
    order = {query: i for i, query in enumerate(first.queries)}
    total = np.zeros(len(first.queries))
    for other in scores:
        total[[order[query] for query in other.queries]] += other.values
    return total / len(scores)


def _check_same_queries(first: PerQueryScores, other: PerQueryScores, where: str, reference: str) -> None:
    if dict(zip(first.queries, map(set, first.positives), strict=True)) != dict(
        zip(other.queries, map(set, other.positives), strict=True)
    ):
        raise DataError(
            f"{where}: the queries or their relevant passages differ from those of {reference}; evaluate both runs on the same "
            "files",
            code="report-queries-differ",
            found=where,
            reference=reference,
        )


def _test(ours: VariantScores | str, theirs: VariantScores | str) -> tuple[float | None, str]:
    """Return the p value of the paired test, or None and the reason why there is none."""
    if isinstance(ours, str):
        return None, ours
    if isinstance(theirs, str):
        return None, theirs
    if ours.means.keys() != theirs.means.keys():
        return None, f"tested on different subsets: {', '.join(ours.means)} and {', '.join(theirs.means)}"
    weighted = []
    for subset, values in ours.means.items():
        first, other = ours.by_run[subset][0], theirs.by_run[subset][0]
        try:
            _check_same_queries(other, first, subset, "the baseline")
        except DataError as error:
            return None, str(error)
        order = {query: i for i, query in enumerate(other.queries)}
        differences = values - theirs.means[subset][[order[query] for query in first.queries]]
        counted = differences[~np.isnan(differences)]
        weighted.append(counted / (len(counted) * len(ours.means)))
    return randomisation_test(np.concatenate(weighted)), ""
