"""Fields of a checkpoint's config: types, ranges, defaults and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ret_lightning.errors import UserError
from ret_lightning.models.checkpoint.config_fields import EXTENSION, ConfigFields, modules_of

FILE = Path("/somewhere/config.json")


def fields(**config: Any) -> ConfigFields:
    return ConfigFields(config, FILE, "query_config.", {"layers": 12, "frozen": True})


def test_stored_values_override_defaults() -> None:
    assert fields().get("layers", int) == 12
    assert fields(layers=3).count("layers") == 3
    assert "layers" not in fields()
    assert fields().flag("frozen") is True
    assert fields(frozen=None).flag("frozen") is False
    assert fields(mean=[1, 0.5, 0.25]).numbers("mean", 3, above=0) == (1, 0.5, 0.25)


@pytest.mark.parametrize(
    ("call", "value", "code"),
    [
        (lambda f: f.get("x", int), "3", "checkpoint-field-type"),
        (lambda f: f.get("x", int), True, "checkpoint-field-type"),  # bool is a subclass of int
        (lambda f: f.get("x", int), None, "checkpoint-field-type"),
        (lambda f: f.flag("x"), 0, "checkpoint-field-type"),
        (lambda f: f.count("x"), 0, "checkpoint-field-too-small"),
        (lambda f: f.fraction("x"), 1.5, "checkpoint-field-share"),
        (lambda f: f.numbers("x", 2, 0), [1, 2, 3], "checkpoint-field-numbers"),
        (lambda f: f.numbers("x", 2, 0), [1, 0], "checkpoint-field-numbers"),
        (lambda f: f.numbers("x", 2, 0), [1, True], "checkpoint-field-numbers"),
        (lambda f: f.choice("x", {"a": 1, "b": 2}), "c", "checkpoint-field-choice"),
        (lambda f: f.section("x", {}), [1], "checkpoint-field-type"),
    ],
)
def test_invalid_values_are_refused(call: Any, value: object, code: str) -> None:
    with pytest.raises(UserError) as caught:
        call(fields(x=value))
    assert (caught.value.code, caught.value.key, caught.value.path) == (code, "query_config.x", FILE)


def test_missing_field_is_reported_with_sections() -> None:
    with pytest.raises(UserError) as caught:
        fields(text_config={}).section("text_config", {}).get("model_type", str)
    assert (caught.value.code, caught.value.key) == ("checkpoint-field-missing", "query_config.text_config.model_type")


def test_extension_accepts_known_fields_only() -> None:
    assert fields().extension(("gate",)).flag("cell_per_step") is False
    assert fields(**{EXTENSION: {"gate": "lstm"}}).extension(("gate",)).get("gate", str) == "lstm"
    with pytest.raises(UserError) as caught:
        fields(**{EXTENSION: {"gait": "lstm"}}).extension(("gate",))
    assert caught.value.code == "checkpoint-field-unknown"
    assert caught.value.key == f"query_config.{EXTENSION}.gait"


def test_modules_must_be_names() -> None:
    assert modules_of(fields().extension(("modules",))) == ()
    assert modules_of(fields(**{EXTENSION: {"modules": ["a.b"]}}).extension(("modules",))) == ("a.b",)
    with pytest.raises(UserError) as caught:
        modules_of(fields(**{EXTENSION: {"modules": ["a.b", 1]}}).extension(("modules",)))
    assert caught.value.code == "checkpoint-modules-not-names"
