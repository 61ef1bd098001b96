"""Counts of unreadable images among the rows of an evaluation, over all ranks."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from lightning import Trainer

from ret_lightning import M2KRDataModule, RetrievalEvaluation
from ret_lightning.data.bad_rows import Tally
from ret_lightning.errors import DataError
from ret_lightning.evaluation import row_counts
from ret_lightning.retrieval import ExactIndex
from tests.support.m2kr_folder import SUBSETS
from tests.support.tiny_training import OPTIONS, make_data, make_module

SKIP = {"on_bad_row": "skip", "max_bad_fraction": 0.5}


def fit(root: Path, **data: object) -> None:
    """Train two epochs, each with a validation."""
    callbacks = [RetrievalEvaluation(ExactIndex(), recall_at=[1], ranked=10)]
    trainer = Trainer(**{**OPTIONS, "logger": False, "max_epochs": 2, "callbacks": callbacks})
    trainer.fit(make_module(), datamodule=make_data(root, **{**SKIP, **data}))


def test_rows_with_missing_images_are_kept(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "images/m2kr/images/sub/5.png").unlink()
    with caplog.at_level(logging.WARNING):
        fit(root)
    warnings = [r.getMessage() for r in caplog.records if "without their image" in r.getMessage()]
    # Queries and candidate pools of four subsets, once each; passage 5 of wit has no image.
    assert {line.split(" cannot")[0] for line in warnings} == {
        f"{name}: the images of the val {side}: 1 of 12 rows (1 missing_image)"
        for name in SUBSETS
        for side in ("queries", "passages")
        if (name, side) != ("wit", "passages")
    }
    assert len(warnings) == 7
    with pytest.raises(DataError) as error:
        fit(root, max_bad_fraction=0.05)
    assert (error.value.code, error.value.found, error.value.rows) == ("too-many-bad-rows", 1, 12)


@pytest.mark.parametrize(("rank", "counted"), [(0, 12), (500, 0)])
def test_repeated_row_of_empty_rank_is_not_counted(
    root: Path, monkeypatch: pytest.MonkeyPatch, rank: int, counted: int
) -> None:
    tallies: list[Tally] = []
    monkeypatch.setattr(row_counts, "reduce_tally", lambda tally, device: tallies.append(tally) or tally)
    monkeypatch.setattr(M2KRDataModule, "_rank_and_world", lambda self: (rank, 1000))
    data = make_data(root, **SKIP)
    data.setup("test")
    counts, seen = row_counts.RowCounts(), []
    for loader in data.test_dataloader():
        for batch in loader:
            counts.add(batch)
            seen.append(len(batch))
    counts.check(data.evaluation_subsets("test"), 0.5, "cpu")
    assert sum(seen) == (counted or 1)
    assert [tally.rows for tally in tallies] == [counted, *[0] * (2 * len(SUBSETS) - 1)]
