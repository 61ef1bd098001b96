"""Data modules that fix their layout: they take and show the options of every corpus."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from ret_lightning import GlyphsDataModule, M2KRDataModule
from ret_lightning.config.checker.signatures import signature_of
from ret_lightning.data import RetrievalDataModule
from ret_lightning.errors import ConfigError
from ret_lightning.inputs import ClipTokenizer, ImageTransform

COMMON = set(inspect.signature(RetrievalDataModule).parameters) - {"layout"}


@pytest.mark.parametrize("kind", [M2KRDataModule, GlyphsDataModule])
def test_signature_shows_the_options_that_are_passed_on(kind: type) -> None:
    shown = inspect.signature(kind).parameters
    assert COMMON < set(shown)
    assert {"layout", "options"}.isdisjoint(shown)
    base = inspect.signature(RetrievalDataModule, eval_str=True).parameters
    assert all(shown[name].default == base[name].default for name in ("batch_size", "reading", "columns"))
    checked = signature_of(kind)
    assert not checked.open
    assert checked.parameters["batch_size"].annotation is int
    assert checked.parameters["reading"].annotation == base["reading"].annotation


def test_own_defaults_are_shown() -> None:
    shown = inspect.signature(GlyphsDataModule).parameters
    assert (shown["validation"].default, shown["shared_passage_ids"].default) == ("val", True)


def test_options_are_passed_on(tmp_path: Path) -> None:
    data = M2KRDataModule(
        tmp_path, ClipTokenizer(), ImageTransform(16), image_folder="pictures", batch_size=7, subsets=["wit"]
    )
    assert (data.batch_size, data.subset_names, data.layout.images) == (7, ["wit"], "pictures")
    with pytest.raises(TypeError, match="batchsize"):
        M2KRDataModule(tmp_path, None, None, batchsize=7)
    with pytest.raises(ConfigError) as error:
        M2KRDataModule(tmp_path, None, None, batch_size=0)
    assert (error.value.code, error.value.key) == ("batch-size-out-of-range", "batch_size")
