"""Select the main metrics of a subset: those that a publication reports for it."""

from __future__ import annotations

from collections.abc import Collection

from ret_lightning.data.layouts.base import published_results
from ret_lightning.data.layouts.m2kr import M2KR_PUBLISHED

# Means of the main metrics over the subsets: name of the mean to the metric, whose K depends on the subset.
MAIN_MEANS = {"main_recall": "recall", "main_pseudo_recall": "pseudo_recall"}


def select_main_metrics(subset: str, computed: Collection[str]) -> list[str]:
    """Return the main metrics of a subset: the published ones, or recall@5 and pseudo_recall@5 for other subsets.

    Args:
        subset: name of the subset.
        computed: the computed metrics; others are left out.
    """
    for published in (M2KR_PUBLISHED, *published_results()):
        names = [metric for name, metric in published.metrics if name == subset]
        if names:
            break
    else:
        names = ["recall@5", "pseudo_recall@5"]
    return [metric for metric in names if metric in computed]
