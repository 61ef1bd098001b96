"""Tests of data modules with a fixed layout, which accept the options of `RetrievalDataModule`."""

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
def test_signature_includes_forwarded_options(kind: type) -> None:
    parameters = inspect.signature(kind).parameters
    assert COMMON < set(parameters)
    assert {"layout", "options"}.isdisjoint(parameters)
    base = inspect.signature(RetrievalDataModule, eval_str=True).parameters
    assert all(parameters[name].default == base[name].default for name in ("batch_size", "reading", "columns"))
    checked = signature_of(kind)
    assert not checked.accepts_any
    assert checked.parameters["batch_size"].annotation is int
    assert checked.parameters["reading"].annotation == base["reading"].annotation


def test_signature_has_own_defaults() -> None:
    parameters = inspect.signature(GlyphsDataModule).parameters
    assert (parameters["validation"].default, parameters["shared_passage_ids"].default) == ("val", True)


def test_options_are_forwarded(tmp_path: Path) -> None:
    data = M2KRDataModule(
        tmp_path, ClipTokenizer(), ImageTransform(16), image_folder="pictures", batch_size=7, subsets=["wit"]
    )
    assert (data.batch_size, data.subset_names, data.layout.images) == (7, ["wit"], "pictures")
    with pytest.raises(TypeError, match="batchsize"):
        M2KRDataModule(tmp_path, None, None, batchsize=7)
    with pytest.raises(ConfigError) as error:
        M2KRDataModule(tmp_path, None, None, batch_size=0)
    assert (error.value.code, error.value.key) == ("batch-size-out-of-range", "batch_size")
