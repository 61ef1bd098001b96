"""User-defined parts: a checkpoint restores them with all their settings, or refuses to store them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from ret_lightning import RetRetriever
from ret_lightning.config.build import build
from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.inputs import ImageTransform
from ret_lightning.models import Gate, GateActivations, LSTMGate, RetCell
from ret_lightning.models.checkpoint.files import load_weights
from ret_lightning.models.checkpoint.fingerprint import fingerprint
from ret_lightning.models.gates import NoGate
from ret_lightning.models.layer_plans import Evenly
from tests.support.hashed_text import StoredText
from tests.support.tiny_models import assert_same_function

Make = Callable[..., RetRetriever]


class SharpGate(LSTMGate):
    """A gate with additional settings."""

    name = "tests_sharp"

    def __init__(
        self,
        hidden_size: int,
        input_bias: float = 0.0,
        forget_bias: float = 0.0,
        tanh: bool = False,
        sharpness: float = 1.0,
        powers: Any = (1, 2),
    ) -> None:
        super().__init__(hidden_size, input_bias, forget_bias, tanh)
        self.sharpness = sharpness

    def activations(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> GateActivations:
        found = super().activations(text, image, text_mask, image_mask)
        return GateActivations(found.forget**self.sharpness, found.text, found.image)


class PlainGate(NoGate):
    """A gate without settings."""

    name = "tests_plain"

    def __init__(self, width: int) -> None:
        super().__init__(width)


class OneBiasGate(LSTMGate):
    """A gate with one setting of another name, whose value is transformed."""

    name = "tests_one_bias"

    def __init__(self, hidden_size: int, *, closed: float = 0.0) -> None:
        super().__init__(hidden_size, input_bias=-closed, forget_bias=closed)


class ShiftedGate(LSTMGate):
    """A gate with the usual settings, which passes other values to its base class."""

    name = "tests_shifted"

    def __init__(self, hidden_size: int, input_bias: float = 0.0, forget_bias: float = 0.0, tanh: bool = False) -> None:
        super().__init__(hidden_size, input_bias - 1, forget_bias + 1, tanh)


class KeywordsGate(SharpGate):
    """A gate whose constructor takes *args and **settings."""

    name = "tests_keywords"

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)


class NamelessGate(SharpGate):
    pass


GATES = {
    "further settings": partial(SharpGate, sharpness=20, tanh=True),
    "further settings by position": lambda width: SharpGate(width, 0.5, 0.0, False, 3.0, [4]),
    "nested settings": partial(SharpGate, powers={"a": [1, None], "b": "x"}),
    "no settings": PlainGate,
    "fewer settings": partial(OneBiasGate, closed=2.0),
    "changed settings": partial(ShiftedGate, input_bias=0.5),
    "keyword arguments": partial(KeywordsGate, sharpness=4.0),
}


class PoppingGate(LSTMGate):
    """A gate whose constructor modifies its arguments."""

    name = "tests_popping"

    def __init__(self, hidden_size: int, levels: list[float], nested: dict[str, list[float]]) -> None:
        super().__init__(hidden_size)
        self.first = levels.pop(0), nested["a"].pop(0)
        nested["b"] = []


@pytest.mark.parametrize("options", [{}, {"cell_per_step": True, "recurrence": Evenly(3)}], ids=["", "per step"])
@pytest.mark.parametrize("by", ["class", "function", "config"])
def test_gate_that_modifies_settings_is_restored(
    make_retriever: Make, tmp_path: Path, options: dict, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"levels": [1.0, 2.0, 3.0], "nested": {"a": [4.0, 5.0]}}

    def create(width: int, **settings: Any) -> PoppingGate:
        return PoppingGate(width, **settings)

    gate: Any = partial(PoppingGate if by == "class" else create, **settings)
    if by == "config":  # Hydra passes its own list and dict classes
        monkeypatch.setenv(OWN_PACKAGES, "tests")
        gate = build(OmegaConf.create({"_target_": f"{__name__}.PoppingGate", "_partial_": True, **settings}))
    retriever = make_retriever(gate=gate, **options).eval()
    retriever.save_pretrained(tmp_path)
    for each in (retriever, RetRetriever.from_pretrained(tmp_path)):
        gates = [cell.gate for tower in (each.query_tower, each.passage_tower) for cell in tower.cells]
        assert [gate.first for gate in gates] == [(1.0, 4.0)] * len(gates)
        assert [gate.settings for gate in gates] == [settings] * len(gates)
    assert settings == {"levels": [1.0, 2.0, 3.0], "nested": {"a": [4.0, 5.0]}}


@pytest.mark.parametrize(
    "options", [{}, {"share_cells": True}, {"cell_per_step": True}], ids=["", "shared", "per step"]
)
@pytest.mark.parametrize("gate", GATES.values(), ids=GATES.keys())
def test_gate_settings_are_restored(make_retriever: Make, tmp_path: Path, gate, options: dict) -> None:
    retriever = make_retriever(gate=gate, **options).eval()
    retriever.save_pretrained(tmp_path)
    again = RetRetriever.from_pretrained(tmp_path)
    for tower, other in ((retriever.query_tower, again.query_tower), (retriever.passage_tower, again.passage_tower)):
        for cell, restored in zip(tower.cells, other.cells, strict=True):
            assert type(restored.gate) is type(cell.gate)
            assert restored.gate.settings == json.loads(json.dumps(cell.gate.settings))
    assert_same_function(again, retriever)
    assert fingerprint(again) == fingerprint(retriever)


def test_gates_of_earlier_exports_are_restored(make_retriever: Make, tmp_path: Path) -> None:
    """Earlier exports stored only the three usual settings, and no modules."""
    make_retriever(gate=partial(SharpGate, forget_bias=0.5)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for side in ("query_config", "passage_config"):
        del config[side]["ret_lightning"]["gate_settings"], config[side]["ret_lightning"]["modules"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    gate = RetRetriever.from_pretrained(tmp_path).query_tower.cells[0].gate
    assert gate.settings == {"input_bias": 0.0, "forget_bias": 0.5, "tanh": False, "sharpness": 1.0, "powers": (1, 2)}


@pytest.mark.parametrize("gate", [SharpGate, NamelessGate])
def test_weights_with_other_gate_setting_are_refused(make_retriever: Make, gate: type[Gate]) -> None:
    target, source = make_retriever(gate=gate), make_retriever(gate=partial(gate, sharpness=20))
    with pytest.raises(ConfigError) as raised:
        load_weights(target, source, "init_from=x")
    assert raised.value.code == "checkpoint-other-architecture"
    assert raised.value.differences == ("gate.sharpness=20 in the checkpoint and 1.0 in the config",)
    assert fingerprint(target) != fingerprint(_with_weights_of(target, source))


def _with_weights_of(target: RetRetriever, source: RetRetriever) -> RetRetriever:
    source.load_state_dict(target.state_dict())
    return source


class OwnCell(RetCell):
    pass


class NamelessText(StoredText):
    pass


class ArgumentsGate(LSTMGate):
    name = "tests_arguments"

    def __init__(self, hidden_size: int, *rest: float) -> None:
        super().__init__(hidden_size, *rest)


class FirstSettingGate(LSTMGate):
    """A gate whose first argument is not the width, so a checkpoint cannot build it."""

    name = "tests_first_setting"

    def __init__(self, sharpness: float, hidden_size: int) -> None:
        super().__init__(hidden_size)


class ForgetfulGate(LSTMGate):
    """A gate with a different number of parameters each time it is built."""

    name = "tests_forgetful"
    built = 0

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        type(self).built += 1
        self.extra = torch.nn.Linear(self.built, 1)


def _own_cell(retriever: RetRetriever) -> None:
    retriever.passage_tower.cells[0].__class__ = OwnCell


def _other_gate_in_one_step(retriever: RetRetriever) -> None:
    retriever.query_tower.cells[1].gate = LSTMGate(32, forget_bias=1.0)


def _other_cell_in_one_step(retriever: RetRetriever) -> None:
    retriever.query_tower.cells[1].activation = "relu"


def _replaced(name: str, part: object) -> Callable[[RetRetriever], None]:
    return lambda retriever: setattr(retriever.passage_tower, name, part)


def _with_gate(gate: Callable[[int], Gate]) -> Callable[[RetRetriever], None]:
    return lambda retriever: [
        setattr(tower.cells[0], "gate", gate(32)) for tower in (retriever.query_tower, retriever.passage_tower)
    ]


@pytest.mark.parametrize(
    ("change", "code", "found"),
    [
        (_replaced("tokenizer", lambda texts: None), "preprocessor-not-storable", "function"),
        (_replaced("image_transform", None), "preprocessor-not-storable", "NoneType"),
        (_own_cell, "part-not-storable", "OwnCell"),
        (_other_cell_in_one_step, "cells-of-steps-differ", "relu"),
        (_replaced("text_backbone", NamelessText(16, 4)), "backbone-without-name", "NamelessText"),
        (_other_gate_in_one_step, "cells-of-steps-differ", "forget_bias"),
        (_with_gate(NamelessGate), "gate-without-name", ""),
        (_with_gate(partial(SharpGate, powers=torch.ones(2))), "gate-setting-not-storable", "tensor"),
        (_with_gate(partial(SharpGate, powers={1: 2})), "gate-setting-not-storable", "{1: 2}"),
        (_with_gate(lambda width: ArgumentsGate(width, 0.5)), "gate-settings-unknown", ""),
        (_with_gate(partial(FirstSettingGate, 2.0)), "checkpoint-not-readable-again", ""),
        (_with_gate(ForgetfulGate), "checkpoint-read-differently", ""),
    ],
)
def test_part_that_cannot_be_restored_is_refused(
    make_retriever: Make, tmp_path: Path, change, code: str, found: str
) -> None:
    make_retriever().save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    retriever = make_retriever(
        cell_per_step=change in (_other_gate_in_one_step, _other_cell_in_one_step), recurrence=Evenly(2)
    )
    change(retriever)
    with pytest.raises(ConfigError) as raised:
        retriever.save_pretrained(tmp_path)
    assert raised.value.code == code
    assert found in str(raised.value.values.get("found", ""))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    fingerprint(retriever)  # such a model can still be used for an index


def test_image_transform_settings_are_restored(make_retriever: Make, tmp_path: Path) -> None:
    retriever = make_retriever().eval()
    usual = fingerprint(retriever)
    for tower in (retriever.query_tower, retriever.passage_tower):
        tower.image_transform = ImageTransform(16, reduce=True)
    assert fingerprint(retriever) != usual
    retriever.save_pretrained(tmp_path)
    again = RetRetriever.from_pretrained(tmp_path)
    assert again.passage_tower.image_transform.reduce
    assert fingerprint(again) == fingerprint(retriever)


SOURCE = """
from ret_lightning.models import LSTMGate

class Mine(LSTMGate):
    name = {package!r}

    def __init__(self, hidden_size, slope=1.0):
        super().__init__(hidden_size)
        self.slope = slope
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Create a package with a gate of the same name in its module `parts`, without importing it."""
    name = f"tests_{uuid4().hex}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "parts.py").write_text(SOURCE.format(package=name))
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.fixture
def exported(make_retriever: Make, package: str, tmp_path: Path) -> Path:
    """Save a model with the gate of the package, then forget the class; return the folder."""
    gate = import_module(f"{package}.parts").Mine
    make_retriever(gate=partial(gate, slope=3.0)).save_pretrained(tmp_path / "model")
    gate.name = ""  # the class can no longer be found
    for module in (package, f"{package}.parts"):
        del sys.modules[module]
    return tmp_path / "model"


def test_allowed_package_is_imported(exported: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN_PACKAGES, package)
    gate = RetRetriever.from_pretrained(exported).query_tower.cells[0].gate
    assert (type(gate).__module__, gate.slope) == (f"{package}.parts", 3.0)


@pytest.mark.parametrize("others", ["", "tests_another,", "{}_too,"])
def test_no_other_package_is_imported(
    exported: Path, package: str, monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    others = others.format(package)
    monkeypatch.setenv(OWN_PACKAGES, others)
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(exported)
    assert (raised.value.code, raised.value.found) == ("gate-name-unknown", package)
    assert f"{OWN_PACKAGES}={others}{package}; " in raised.value.message
    assert package not in sys.modules


def test_package_with_import_error_is_reported(exported: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN_PACKAGES, package)
    (exported.parent / package / "parts.py").write_text("1 / 0")
    with pytest.raises(UserError) as raised:
        RetRetriever.from_pretrained(exported)
    assert f"import of {package}.parts failed (ZeroDivisionError: division by zero)" in raised.value.message
