"""Folder, errors and warnings of an evaluation; tests/commands/test_evaluate.py runs evaluations."""

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
    _add_resume_hint,
    _prepare_folder,
    _shared_preprocessors,
    _store_config,
    _warn_of_training_rows,
)

NEW, FORMER = OmegaConf.create({"seed": 2}), "seed: 1\n"


@pytest.mark.parametrize("before", [[3, 0], []])
def test_refused_evaluation_restores_the_config(tmp_path: Path, before: list[int]) -> None:
    """Unless stored embeddings of the interrupted evaluation were reused."""
    (tmp_path / "config.yaml").write_text(FORMER)

    def refused() -> None:
        with _store_config(tmp_path, NEW, SimpleNamespace(before=before)):
            assert OmegaConf.load(tmp_path / "config.yaml") == NEW
            raise DataError("another checkpoint", code="store-of-another-plan")

    with pytest.raises(DataError):
        refused()
    assert ((tmp_path / "config.yaml").read_text() == FORMER) == (not before)


def test_config_of_an_evaluation_is_stored(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(FORMER)
    with _store_config(tmp_path, NEW, SimpleNamespace(before=[])):
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
def test_errors_state_how_to_resume(tmp_path: Path, error: Exception, code: str | None) -> None:
    with pytest.raises(Exception) as caught, _add_resume_hint(tmp_path):  # noqa: PT011  the type is checked below
        raise error
    if code is None:
        assert caught.value is error
        return
    assert isinstance(caught.value, UserError)
    assert caught.value.code == code
    assert f"output_dir={tmp_path}" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("stored", "removed"), [("false", True), ("true", False)])
def test_leftover_embeddings_are_removed(tmp_path: Path, stored: str, removed: bool) -> None:
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "config.yaml").write_text(f"keep_embeddings: {stored}\n")
    _prepare_folder(tmp_path, keep_embeddings=False)  # not finished, so the embeddings are needed
    assert (tmp_path / "embeddings").exists()
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        _prepare_folder(tmp_path, keep_embeddings=False)
    assert caught.value.code == "folder-holds-metrics"
    assert (tmp_path / "embeddings").exists() != removed


HOLDOUT = {"validation": "holdout", "holdout_rows": 1000, "holdout_fraction": 0.02}


@pytest.mark.parametrize(
    ("split", "source", "trained", "reason"),
    [
        ("val", "holdout", HOLDOUT, None),
        ("val", "holdout", {**HOLDOUT, "holdout_rows": 10}, "other holdout settings"),
        ("val", "holdout", {**HOLDOUT, "validation": "val"}, "data.validation=val"),
        ("val", "holdout", None, "its training config is not stored"),
        ("val", "val", None, None),
        ("test", "holdout", None, None),
    ],
)
def test_warning_about_metrics_on_training_rows(
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


def test_different_preprocessors_are_refused() -> None:
    def retriever(size: int, length: int) -> SimpleNamespace:
        towers = [
            SimpleNamespace(tokenizer=ClipTokenizer(n), image_transform=ImageTransform(side))
            for n, side in ((7, 16), (length, size))
        ]
        return SimpleNamespace(query_tower=towers[0], passage_tower=towers[1])

    found = _shared_preprocessors(retriever(16, 7), "run")
    assert (found["tokenizer"].max_length, found["image_transform"].size) == (7, 16)
    for size, length, kind in ((16, 9, "tokenizer"), (24, 7, "image_transform")):
        with pytest.raises(ConfigError) as error:
            _shared_preprocessors(retriever(size, length), "run")
        assert (error.value.code, error.value.key) == ("towers-prepared-differently", kind)
        assert len(error.value.found) == 1
