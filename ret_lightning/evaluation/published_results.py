"""Which metrics of a subset to report first: those that a publication reports of it."""

from __future__ import annotations

from collections.abc import Collection

from ret_lightning.data.layouts.base import published_results
from ret_lightning.data.layouts.m2kr import M2KR_PUBLISHED

# Means over the subsets of what is reported of each, and the metric that they are of, whatever its K.
MAIN_MEANS = {"main_recall": "recall", "main_pseudo_recall": "pseudo_recall"}


def main_metrics(subset: str, computed: Collection[str]) -> list[str]:
    """The metrics of a subset to report first: the published ones; of another subset recall@5, and pseudo_recall@5.

    Args:
        subset: its name.
        computed: the metrics that there are; others are left out.
    """
    for published in (M2KR_PUBLISHED, *published_results()):
        wanted = [metric for name, metric in published.metrics if name == subset]
        if wanted:
            break
    else:
        wanted = ["recall@5", "pseudo_recall@5"]
    return [metric for metric in wanted if metric in computed]
