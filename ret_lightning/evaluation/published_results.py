"""Which metric of each subset of ReT-M2KR the paper reports, and its results (CVPR 2025, arXiv 2503.01980)."""

from __future__ import annotations

from collections.abc import Collection

# Recall's K of each subset; those of the paper, of which the last three are reported with pseudo recall too.
RECALL_AT = {"wit": 10, "iglue": 1, "kvqa": 5, "oven": 5, "llava": 1, "infoseek": 5, "evqa": 5, "okvqa": 5}
WITH_ANSWERS = ("infoseek", "evqa", "okvqa")

# The paper's columns, in its order: subset and metric.
COLUMNS = tuple(
    (subset, metric)
    for subset, k in RECALL_AT.items()
    for metric in (f"recall@{k}", *(["pseudo_recall@5"] if subset in WITH_ANSWERS else []))
)

# Model to the values of these columns.
PUBLISHED = {
    "ReT CLIP ViT-L/14": (0.734, 0.818, 0.635, 0.820, 0.799, 0.470, 0.605, 0.445, 0.579, 0.202, 0.662),
    "ReT OpenCLIP ViT-H/14": (0.714, 0.800, 0.593, 0.830, 0.798, 0.473, 0.607, 0.448, 0.578, 0.182, 0.634),
    "ReT OpenCLIP ViT-G/14": (0.751, 0.822, 0.606, 0.840, 0.792, 0.520, 0.625, 0.486, 0.602, 0.190, 0.638),
    "PreFLMR ViT-L (text-only passages)": (0.605, 0.699, 0.440, 0.608, 0.729, 0.374, 0.578, 0.609, 0.708, 0.314, 0.690),
}

# Means over the subsets of what the paper reports of each, and the metric that they are of, whatever its K.
HEADLINE_MEANS = {"headline_recall": "recall", "headline_pseudo_recall": "pseudo_recall"}


def headline_metrics(subset: str, computed: Collection[str]) -> list[str]:
    """The metrics of a subset to report first: the paper's; of a subset that it has not, recall@5, and pseudo_recall@5.

    Args:
        subset: its name.
        computed: the metrics that there are; others are left out.
    """
    if subset in RECALL_AT:
        wanted = [metric for name, metric in COLUMNS if name == subset]
    else:
        wanted = ["recall@5", "pseudo_recall@5"]
    return [metric for metric in wanted if metric in computed]
