"""Values of `selected_on` and their descriptions."""

from __future__ import annotations

import pytest

from ret_lightning.training.checkpointing.selection_queries import describe, from_run, from_sources

CHECKPOINT = {"callbacks": {"checkpoint": {"monitor": "val/mean/recall@5"}}}


@pytest.mark.parametrize(
    ("origin", "config", "expected"),
    [
        ({"selected_on": "holdout"}, CHECKPOINT | {"data": {"validation": "test"}}, "holdout"),
        ({}, CHECKPOINT | {"data": {"validation": "test"}}, "test"),
        ({}, CHECKPOINT | {"data": {"validation": "val"}}, "val"),
        ({}, CHECKPOINT | {"data": {"validation": "auto"}}, "unknown"),  # the files that existed are not stored
        ({}, CHECKPOINT | {"data": {"_target_": "ret_lightning.data.GlyphsDataModule"}}, "val"),
        ({}, CHECKPOINT | {"data": {"validation": "val"}, "test_with": "last"}, "last"),
        ({}, {"data": {"validation": "val"}, "callbacks": {"checkpoint": None}}, "last"),
    ],
)
def test_selected_on_of_a_run(origin: dict, config: dict, expected: str) -> None:
    assert from_run(origin, config) == expected


def test_distinct_sources_are_joined() -> None:
    assert from_sources(["val", "holdout", "val"]) == "val+holdout"
    assert describe("val+holdout") == "selected on validation queries and held-out training rows"
