"""Signatures as a config sees them: which keys there are, which are required, and their types."""

from __future__ import annotations

from typing import Any

import pytest

from ret_lightning.config.checker.signatures import signature_of
from ret_lightning.config.targets.locate import locate
from tests.support import config_targets

PARTS = "tests.support.config_targets"


def names(target: str) -> tuple[dict[str, bool], bool]:
    """The parameters that can be given by name, whether each is required, and whether there are more."""
    signature = signature_of(locate(target))
    assert signature is not None
    return {name: parameter.required for name, parameter in signature.parameters.items()}, signature.open


@pytest.mark.parametrize(
    ("target", "parameters", "more"),
    [
        ("Model", {"gate": True, "width": False, "name": False}, False),
        ("Log", {"save_dir": True}, True),
        ("Derived", {"size": True, "depth": False, "where": False}, False),
        ("Diamond", {"right": True}, False),
        ("Wrapped", {"size": True, "level": False}, False),
        ("Made", {"size": True}, True),
        ("Made.from_size", {"size": True, "name": False}, False),
        ("Made.plain", {"size": True}, False),
        ("MadeAnyhow", {"size": True}, False),  # its __new__ takes anything
        ("Record", {"count": True, "names": False}, False),
        ("RecordChild", {"count": True, "names": False, "extra": False}, False),
        ("positional", {"second": True, "third": False}, False),
        ("folder", {}, False),
        ("Mixin", {}, False),
    ],
)
def test_names_that_a_config_can_set(target: str, parameters: dict[str, bool], more: bool) -> None:
    assert names(f"{PARTS}.{target}") == (parameters, more)


def test_annotations_are_types() -> None:
    record = signature_of(config_targets.LongRecord).parameters
    assert (record["names"].annotation, record["extra"].annotation) == (list[str], str)  # also those of a base
    base = signature_of(config_targets.Derived).parameters
    assert base["size"].annotation == config_targets.Size
    assert (base["where"].nullable, base["size"].nullable) == (True, False)
    assert signature_of(config_targets.Schema).parameters["record"].annotation == config_targets.Record | None


def test_annotation_that_cannot_be_evaluated_leaves_the_others(tmp_path, monkeypatch) -> None:
    lines = ["from __future__ import annotations", "def make(size: int, other: OnlyForTypeCheckers): ..."]
    (tmp_path / "half_annotated.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    parameters = signature_of(locate("half_annotated.make")).parameters
    assert (parameters["size"].annotation, parameters["other"].annotation) == (int, Any)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "name", "annotated"),
    [
        ("lightning.Trainer", "max_epochs", True),
        ("lightning.pytorch.callbacks.ModelCheckpoint", "save_top_k", True),
        ("lightning.pytorch.loggers.WandbLogger", "project", True),
        ("torch.nn.Linear", "in_features", True),
        ("torch.optim.AdamW", "betas", True),
        ("torchmetrics.MeanMetric", "nan_strategy", True),
    ],
)
def test_classes_of_the_libraries_that_configs_name(target: str, name: str, annotated: bool) -> None:
    parameter = signature_of(locate(target)).parameters[name]
    assert (parameter.annotation is not Any) == annotated


def test_no_signature_is_left_open() -> None:
    assert signature_of(type) is None
