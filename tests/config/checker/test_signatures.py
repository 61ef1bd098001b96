"""Signatures of targets: parameters, required parameters and types."""

from __future__ import annotations

from typing import Any

import pytest

from ret_lightning.config.checker.signatures import signature_of
from ret_lightning.config.targets.locate import locate
from tests.support import config_targets

PARTS = "tests.support.config_targets"


def names(target: str) -> tuple[dict[str, bool], bool]:
    """Return the parameters with whether each is required, and whether other names are accepted."""
    signature = signature_of(locate(target))
    assert signature is not None
    return {name: parameter.required for name, parameter in signature.parameters.items()}, signature.accepts_any


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
        ("MadeAnyhow", {"size": True}, False),  # its __new__ accepts any argument
        ("Record", {"count": True, "names": False}, False),
        ("RecordChild", {"count": True, "names": False, "extra": False}, False),
        ("positional", {"second": True, "third": False}, False),
        ("folder", {}, False),
        ("Mixin", {}, False),
    ],
)
def test_parameters_that_a_config_can_set(target: str, parameters: dict[str, bool], more: bool) -> None:
    assert names(f"{PARTS}.{target}") == (parameters, more)


def test_annotations_are_types() -> None:
    record = signature_of(config_targets.LongRecord).parameters
    assert (record["names"].annotation, record["extra"].annotation) == (
        list[str],
        str,
    )  # including those of a base class
    base = signature_of(config_targets.Derived).parameters
    assert base["size"].annotation == config_targets.Size
    assert (base["where"].nullable, base["size"].nullable) == (True, False)
    assert signature_of(config_targets.Schema).parameters["record"].annotation == config_targets.Record | None


def test_annotation_that_cannot_be_evaluated_is_any(tmp_path, monkeypatch) -> None:
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
def test_library_classes_have_annotations(target: str, name: str, annotated: bool) -> None:
    parameter = signature_of(locate(target)).parameters[name]
    assert (parameter.annotation is not Any) == annotated


def test_type_without_signature() -> None:
    assert signature_of(type) is None
