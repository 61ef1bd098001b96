"""Objective of a hyperparameter search, and source of the queries that selected the tested weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from ret_lightning.errors import ConfigError
from ret_lightning.runs.training_run import _selection_source, best_validation
from ret_lightning.training.checkpointing import selection_queries
from tests.support.scored_checkpoints import RECALL, write_checkpoint, write_config


def test_objective_is_the_score_of_the_best_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for mode, score in (("max", 0.8), ("min", 0.5)):
        write_config(run, RECALL, mode)
        for step, recall in ((5, 0.5), (10, 0.8)):
            write_checkpoint(run, f"best_step_{step}.ckpt", step, {RECALL: recall, "val/mean/mrr@10": 0.9})
        assert best_validation(run) == score


def test_search_needs_a_score(tmp_path: Path) -> None:
    write_config(tmp_path / "run")
    write_checkpoint(tmp_path / "run", "last.ckpt", 20)
    with pytest.raises(ConfigError) as caught:
        best_validation(tmp_path / "run")
    assert caught.value.code == "search-without-score"


@pytest.mark.parametrize(("best", "test_with"), [(None, "best"), ("checkpoint", "last")])
def test_last_weights_have_no_selection_queries(best: str | None, test_with: str) -> None:
    assert _selection_source(None, best, OmegaConf.create({"test_with": test_with})) == selection_queries.LAST


def test_best_weights_are_selected_on_validation_queries() -> None:
    data = SimpleNamespace(evaluation_subsets=lambda split: [SimpleNamespace(source={"val": "holdout"}[split])])
    found = _selection_source(data, "checkpoint", OmegaConf.create({"test_with": "best"}))
    assert found == selection_queries.from_sources(["holdout"])
    assert found != selection_queries.from_sources(["test"])
