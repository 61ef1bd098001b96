"""Constructor settings of exchangeable parts, and their conversion to JSON."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from ret_lightning.models import LSTMGate
from ret_lightning.models.exchangeable_parts import (
    class_name,
    constructor_settings,
    described_value,
    is_own,
    json_value,
    subclasses,
)


class Parent:
    pass


class Child(Parent):
    def __init__(self, width: int, bias: float = 0.5, *, tanh: bool = False) -> None:
        pass


class Grandchild(Child):
    def __init__(self, sharpness: float, hidden_size: int, **more: Any) -> None:
        pass


class Nameless(Parent):
    def __init__(self, width: int, *rest: float) -> None:
        pass


def test_subclasses_include_indirect_ones() -> None:
    assert set(subclasses(Parent)) == {Child, Grandchild, Nameless}
    assert list(subclasses(Grandchild)) == []


@pytest.mark.parametrize(
    ("kind", "args", "kwargs", "settings"),
    [
        (Child, (8,), {}, {"bias": 0.5, "tanh": False}),
        (Child, (8, 1.0), {"tanh": True}, {"bias": 1.0, "tanh": True}),
        (Child, (), {"width": 8, "bias": 2.0}, {"bias": 2.0, "tanh": False}),
        (Grandchild, (3.0,), {"hidden_size": 8, "depth": 2}, {"sharpness": 3.0, "depth": 2}),
        (Nameless, (8,), {}, {}),
        (Nameless, (8, 0.1), {}, None),  # an argument without a name
        (Child, (8, 1.0, 2.0), {}, None),  # rejected by the constructor
        (Child, (8,), {"slope": 1}, None),
    ],
)
def test_constructor_settings_exclude_width(kind: type, args: tuple, kwargs: dict, settings: dict | None) -> None:
    assert constructor_settings(kind.__new__(kind), args, kwargs) == settings


def test_json_value_matches_json_round_trip() -> None:
    value = {"a": (1, 2.5, None), "b": [True, {"c": "x"}]}
    assert json_value(value) == json.loads(json.dumps(value)) == {"a": [1, 2.5, None], "b": [True, {"c": "x"}]}
    for refused, reason in (
        ({1: "a"}, "expected strings as keys"),
        ({"a": {1, 2}}, "cannot represent set"),
        (object(), "cannot represent object"),
    ):
        with pytest.raises(TypeError, match=reason):
            json_value(refused)


def test_described_value_is_independent_of_process() -> None:
    assert described_value((1, "a")) == [1, "a"]
    assert described_value(json.dumps) == "json.dumps"
    assert described_value(Child) == f"{__name__}.Child"
    one, other = described_value(partial(json.dumps, object())), described_value(partial(json.dumps, object()))
    assert one == other
    assert "0x" not in one


def test_class_names_and_user_defined_classes() -> None:
    assert (class_name(LSTMGate(4)), is_own(LSTMGate(4))) == ("ret_lightning.models.gates.LSTMGate", False)
    assert (class_name(Parent()), is_own(Parent())) == (f"{__name__}.Parent", True)
