"""The folder of an evaluation, its errors, and the warning about training rows; tests/commands/test_evaluate.py evaluates."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from ret_lightning.errors import ConfigError, DataError, UserError
from ret_lightning.inputs import ClipTokenizer, ImageTransform
from ret_lightning.runs.evaluation_run import (
    _config_written,
    _kept,
    _preparation,
    _take_folder,
    _warn_of_training_rows,
)

NEW, FORMER = OmegaConf.create({"seed": 2}), "seed: 1\n"


@pytest.mark.parametrize("before", [[3, 0], []])
def test_refused_evaluation_restores_the_config_of_an_interrupted_one(tmp_path: Path, before: list[int]) -> None:
    """Unless rows were already taken over from its stores."""
    (tmp_path / "config.yaml").write_text(FORMER)

    def refused() -> None:
        with _config_written(tmp_path, NEW, SimpleNamespace(before=before)):
            assert OmegaConf.load(tmp_path / "config.yaml") == NEW
            raise DataError("another checkpoint", code="store-of-another-plan")

    with pytest.raises(DataError):
        refused()
    assert ((tmp_path / "config.yaml").read_text() == FORMER) == (not before)


def test_config_of_an_evaluation_stays(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(FORMER)
    with _config_written(tmp_path, NEW, SimpleNamespace(before=[])):
        pass
    assert OmegaConf.load(tmp_path / "config.yaml") == NEW


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk-full"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.\nmore"), "evaluation-worker-killed"),
        (RuntimeError("mine"), None),
        (ValueError("DataLoader worker"), None),
    ],
)
def test_errors_say_that_the_embeddings_are_kept(tmp_path: Path, error: Exception, code: str | None) -> None:
    with pytest.raises(Exception) as caught, _kept(tmp_path):  # noqa: PT011  the kind is compared below
        raise error
    if code is None:
        assert caught.value is error
        return
    assert isinstance(caught.value, UserError)
    assert caught.value.code == code
    assert f"the same command with output_dir={tmp_path} continues there" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("stored", "removed"), [("false", True), ("true", False)])
def test_embeddings_left_over_by_a_killed_process_are_removed(tmp_path: Path, stored: str, removed: bool) -> None:
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "config.yaml").write_text(f"keep_embeddings: {stored}\n")
    _take_folder(tmp_path, keep_embeddings=False)  # not finished: they are needed
    assert (tmp_path / "embeddings").exists()
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        _take_folder(tmp_path, keep_embeddings=False)
    assert caught.value.code == "folder-holds-metrics"
    assert (tmp_path / "embeddings").exists() != removed


HOLDOUT = {"validation": "holdout", "holdout_rows": 1000, "holdout_fraction": 0.02}


@pytest.mark.parametrize(
    ("split", "source", "trained", "reason"),
    [
        ("val", "holdout", HOLDOUT, None),
        ("val", "holdout", {**HOLDOUT, "holdout_rows": 10}, "other settings of the holdout"),
        ("val", "holdout", {**HOLDOUT, "validation": "val"}, "data.validation=val"),
        ("val", "holdout", None, "nothing tells which rows"),
        ("val", "val", None, None),
        ("test", "holdout", None, None),
    ],
)
def test_metrics_on_training_rows_are_warned_of(
    tmp_path: Path, caplog, split: str, source: str, trained: dict | None, reason: str | None
) -> None:
    file = tmp_path / "best.ckpt"
    if trained is not None:
        record = {"config": {"data": trained}}
        torch.save({"state_dict": {}, "epoch": 0, "global_step": 1, "ret_lightning": record}, file)
    config = OmegaConf.create({"split": split, "checkpoint": str(file), "data": HOLDOUT})
    with caplog.at_level(logging.WARNING):
        _warn_of_training_rows(SimpleNamespace(validated_on={"wit": source}), config)
    assert len(caplog.messages) == (reason is not None)
    assert (reason or "") in caplog.text


def test_towers_that_prepare_differently_are_refused() -> None:
    def retriever(size: int, length: int) -> SimpleNamespace:
        towers = [
            SimpleNamespace(tokenizer=ClipTokenizer(n), image_transform=ImageTransform(side))
            for n, side in ((7, 16), (length, size))
        ]
        return SimpleNamespace(query_tower=towers[0], passage_tower=towers[1])

    found = _preparation(retriever(16, 7), "run")
    assert (found["tokenizer"].max_length, found["image_transform"].size) == (7, 16)
    for size, length, kind in ((16, 9, "tokenizer"), (24, 7, "image_transform")):
        with pytest.raises(ConfigError) as error:
            _preparation(retriever(size, length), "run")
        assert (error.value.code, error.value.key) == ("towers-prepared-differently", kind)
        assert len(error.value.found) == 1
