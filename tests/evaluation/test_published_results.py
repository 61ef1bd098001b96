"""The main metrics of each subset, as reported in the paper."""

from __future__ import annotations

import pytest

from ret_lightning.evaluation.published_results import select_main_metrics


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        ("wit", ["recall@10"]),
        ("iglue", ["recall@1"]),
        ("kvqa", ["recall@5"]),
        ("oven", ["recall@5"]),
        ("llava", ["recall@1"]),
        ("infoseek", ["recall@5", "pseudo_recall@5"]),
        ("evqa", ["recall@5", "pseudo_recall@5"]),
        ("okvqa", ["recall@5", "pseudo_recall@5"]),
        ("my own", ["recall@5", "pseudo_recall@5"]),
    ],
)
def test_main_metrics_are_the_published_ones(subset: str, expected: list[str]) -> None:
    computed = [f"{name}@{k}" for name in ("recall", "pseudo_recall") for k in (1, 2, 3, 5, 10)]
    assert select_main_metrics(subset, computed) == expected
    assert select_main_metrics(subset, ["recall@3"]) == []
