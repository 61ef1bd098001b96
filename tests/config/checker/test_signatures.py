"""Signatures read from source, against `inspect.signature` of the same things really imported."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

import pytest

from ret_lightning.config.checker.signatures import signature_of, signature_of_type
from tests.support import config_targets

PARTS = "tests.support.config_targets"
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def really(target: str) -> tuple[dict[str, bool], bool]:
    """The parameters of an imported object that can be given by name, whether each is required, and if there are more."""
    path = target.split(".")
    for count in range(len(path), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(path[:count]))
        except ModuleNotFoundError:
            continue
        for name in path[count:]:
            found = getattr(found, name)
        parameters = inspect.signature(found).parameters.values()
        named = {each.name: each.default is inspect.Parameter.empty for each in parameters if each.kind in NAMED}
        return named, any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    raise AssertionError(target)


def read(target: str) -> tuple[dict[str, bool], bool]:
    signature = signature_of(target)
    assert signature is not None, f"{target} was not resolved"
    return {name: parameter.required for name, parameter in signature.parameters.items()}, signature.open


@pytest.mark.parametrize(
    "target",
    [
        f"{PARTS}.{name}"
        for name in (
            *("Model", "Log", "Derived", "Left", "Diamond", "Wrapped", "Made", "Made.from_size", "Made.plain"),
            *("Record", "LongRecord", "RecordChild", "Schema", "positional", "folder"),
        )
    ]
    + [f"tests.support.reexported_targets.{name}" for name in ("Gate", "Door", "Alias", "other.NoGate", "Lazy")],
)
def test_agrees_with_inspect_on_classes_and_functions(target: str) -> None:
    assert read(target) == really(target)


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    [
        "lightning.Trainer",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.callbacks.RichProgressBar",
        "lightning.pytorch.callbacks.TQDMProgressBar",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.loggers.TensorBoardLogger",
        "lightning.pytorch.loggers.WandbLogger",
        "lightning.pytorch.strategies.DDPStrategy",
        "torch.nn.GELU",
        "torch.nn.Linear",
        "torch.optim.AdamW",
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "torchmetrics.MeanMetric",
    ],
)
def test_agrees_with_inspect_on_the_libraries_that_configs_name(target: str) -> None:
    assert read(target) == really(target)


def test_a_new_that_passes_everything_on_leaves_the_word_to_init() -> None:
    assert read(f"{PARTS}.MadeAnyhow") == ({"size": True}, False)
    with pytest.raises(TypeError):
        config_targets.MadeAnyhow(sise=3)


def test_a_schema_that_is_imported_is_read_from_its_source() -> None:
    signature = signature_of_type(config_targets.Schema)
    assert signature is not None
    assert {name: each.required for name, each in signature.parameters.items()} == really(f"{PARTS}.Schema")[0]


@pytest.mark.parametrize(
    "target",
    [
        f"{PARTS}.Changed",  # a decorator that hands on other parameters
        f"{PARTS}.T",  # no class
        "tests.support.reexported_targets.Anything",  # the module has a __getattr__
        "torch.Anything",  # PyTorch takes names from a C extension
        "os.system",  # the standard library is not looked into
    ],
)
def test_what_only_running_code_can_tell_is_left_open(target: str) -> None:
    assert signature_of(target) is None


def test_nothing_is_imported_by_reading(tmp_path, monkeypatch) -> None:
    (tmp_path / "unimported_part.py").write_text("raise RuntimeError('imported')\nclass Gate:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    signature = signature_of("unimported_part.Gate")
    assert signature is not None
    assert not signature.parameters
    assert "unimported_part" not in sys.modules
