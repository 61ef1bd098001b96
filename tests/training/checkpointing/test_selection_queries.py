"""What is stated of the queries that a checkpoint was chosen on."""

from __future__ import annotations

import pytest

from ret_lightning.training.checkpointing.selection_queries import in_words, of_run, of_sources

CHECKPOINT = {"callbacks": {"checkpoint": {"monitor": "val/mean/recall@5"}}}


@pytest.mark.parametrize(
    ("origin", "config", "expected"),
    [
        ({"selected_on": "holdout"}, CHECKPOINT | {"data": {"validation": "test"}}, "holdout"),
        ({}, CHECKPOINT | {"data": {"validation": "test"}}, "test"),
        ({}, CHECKPOINT | {"data": {"validation": "val"}}, "val"),
        ({}, CHECKPOINT | {"data": {"validation": "auto"}}, "unknown"),  # which files there were is not stored
        ({}, CHECKPOINT | {"data": {"_target_": "ret_lightning.data.GlyphsDataModule"}}, "val"),
        ({}, CHECKPOINT | {"data": {"validation": "val"}, "test_with": "last"}, "last"),
        ({}, {"data": {"validation": "val"}, "callbacks": {"checkpoint": None}}, "last"),
    ],
)
def test_run_states_its_choice(origin: dict, config: dict, expected: str) -> None:
    assert of_run(origin, config) == expected


def test_sources_are_joined_once() -> None:
    assert of_sources(["val", "holdout", "val"]) == "val+holdout"
    assert in_words("val+holdout") == "chosen on validation queries and held-out training rows"
