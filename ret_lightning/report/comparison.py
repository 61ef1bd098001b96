"""Variants compared by one metric: over seeds, and query by query with the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ret_lightning.data.types import EvaluationSubset
from ret_lightning.errors import DataError
from ret_lightning.report.per_query_results import Judged, judge_run, mean_parts
from ret_lightning.report.run_folders import Run
from ret_lightning.report.statistics import Summary, difference_over_seeds, holm, randomisation_test, summarise
from ret_lightning.report.variants import Variant
from ret_lightning.runtime.progress import progress_bar


@dataclass(frozen=True)
class PerQuery:
    """A metric of every query, averaged over a variant's seeds.

    Attributes:
        judged: subset to what each run had, in the order of the variant's runs.
        means: subset to (Nq,), in the order of the first run's queries.
    """

    judged: dict[str, list[Judged]]
    means: dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        variant: whose.
        summary: of the metric, over seeds.
        difference: of the means, this minus the baseline's; None for the baseline itself.
        difference_interval: of it, over seeds; None where either has one seed.
        p: of the paired test over queries; None where there was none.
        p_corrected: by Holm, for the number of comparisons of the table.
        untested: why there was no test.
    """

    variant: Variant
    summary: Summary
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    p: float | None = None
    p_corrected: float | None = None
    untested: str = ""


def per_query(
    variants: Sequence[Variant], metric: str, data: Callable[[], Mapping[str, EvaluationSubset]]
) -> dict[str, PerQuery | str]:
    """Of each variant, by its fingerprint, what each query got; or why that cannot be told.

    Args:
        variants: all whose runs have the metric.
        metric: `<subset>/<name>` or `mean/<name>`.
        data: gives the texts, for pseudo recall; called only then.
    """
    runs = sum(len(variant.runs) for variant in variants)
    found: dict[str, PerQuery | str] = {}
    with progress_bar(total=runs, desc="reading rankings", delay=3) as progress:
        for variant in variants:
            judged: dict[str, list[Judged]] = {}
            try:
                for run in variant.runs:
                    for subset, own in _judged(run, metric, data).items():
                        judged.setdefault(subset, []).append(own)
                    progress.update()
                found[variant.fingerprint] = PerQuery(judged, {s: _mean(s, of, variant) for s, of in judged.items()})
            except DataError as error:
                found[variant.fingerprint] = error.message
    return found


def compare(
    variants: Sequence[Variant], baseline: Variant, metric: str, queries: Mapping[str, PerQuery | str]
) -> list[Row]:
    """A row a variant, in their order.

    The test pairs queries by their ids and compares what they got on average over each side's seeds. It says whether these
    trained models would differ on other queries of the kind, not whether training with other seeds would show the same.
    """
    ours = [run.metrics[metric] for run in baseline.runs]
    rows: list[Row] = []
    for variant in variants:
        values = [run.metrics[metric] for run in variant.runs]
        summary = summarise(values)
        if variant is baseline:
            rows.append(Row(variant, summary))
            continue
        p, untested = _test(queries[variant.fingerprint], queries[baseline.fingerprint])
        difference = summary.mean - summarise(ours).mean
        rows.append(Row(variant, summary, difference, difference_over_seeds(values, ours), p, None, untested))
    corrected = iter(holm([row.p for row in rows if row.p is not None]))
    return [row if row.p is None else replace(row, p_corrected=next(corrected)) for row in rows]


def _judged(run: Run, metric: str, data: Callable[[], Mapping[str, EvaluationSubset]]) -> dict[str, Judged]:
    return {
        subset: judge_run(run, subset, name, data().get(subset) if name.startswith("pseudo_recall") else None)
        for subset, name in mean_parts(metric, run.metrics).items()
    }


def _mean(subset: str, judged: Sequence[Judged], variant: Variant) -> np.ndarray:
    first = judged[0]
    for run, other in zip(variant.runs, judged, strict=True):
        _same_queries(first, other, f"{run.folder}: {subset}")
    order = {query: i for i, query in enumerate(first.queries)}
    total = np.zeros(len(first.queries))
    for other in judged:
        total[[order[query] for query in other.queries]] += other.values
    return total / len(judged)


def _same_queries(first: Judged, other: Judged, where: str) -> None:
    if dict(zip(first.queries, map(set, first.positives), strict=True)) != dict(
        zip(other.queries, map(set, other.positives), strict=True)
    ):
        raise DataError(
            f"{where} has other queries, or other right passages for them, than the runs beside it",
            code="report-queries-differ",
            found=where,
        )


def _test(ours: PerQuery | str, theirs: PerQuery | str) -> tuple[float | None, str]:
    for side in (ours, theirs):
        if isinstance(side, str):
            return None, side
    if ours.means.keys() != theirs.means.keys():
        return None, "the two were tested on different subsets"
    weighted = []
    for subset, values in ours.means.items():
        first, other = ours.judged[subset][0], theirs.judged[subset][0]
        try:
            _same_queries(other, first, subset)
        except DataError as error:
            return None, error.message
        order = {query: i for i, query in enumerate(other.queries)}
        differences = values - theirs.means[subset][[order[query] for query in first.queries]]
        counted = differences[~np.isnan(differences)]
        weighted.append(counted / (len(counted) * len(ours.means)))
    return randomisation_test(np.concatenate(weighted)), ""
