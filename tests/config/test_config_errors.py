"""Config errors as a command prints them, and suggestions for misspelt names."""

from __future__ import annotations

import pytest
import yaml

from ret_lightning.config.config_errors import Problem, choices, format_problems, format_value, nearest
from ret_lightning.errors import ConfigError


def test_format_problems_counts() -> None:
    problems = [
        Problem("conf/a.yaml:1", "a.b", ConfigError("is wrong", code="wrong-value")),
        Problem("command line: +a=1", "a", ConfigError("is wrong too", code="wrong-again")),
    ]
    assert format_problems(problems, "ret-train") == (
        "ret-train: 2 problems in the config:\n"
        "  conf/a.yaml:1: a.b: is wrong [wrong-value]\n"
        "  command line: +a=1: is wrong too [wrong-again]"
    )
    assert format_problems(problems[:1], "ret-train").startswith("ret-train: 1 problem in the config:\n")


@pytest.mark.parametrize(
    ("source", "key", "line"),
    [
        ("conf/gate/lstm.yaml:4", "model.gate.size", "conf/gate/lstm.yaml:4: model.gate.size: is wrong [wrong]"),
        ("conf/train.yaml", "", "conf/train.yaml: is wrong [wrong]"),
        ("command line: ++seed=x", "seed", "command line: ++seed=x: is wrong [wrong]"),
        ("command line: seeds=x", "seed", "command line: seeds=x: seed: is wrong [wrong]"),
    ],
)
def test_key_is_printed_unless_the_override_begins_with_it(source: str, key: str, line: str) -> None:
    assert str(Problem(source, key, ConfigError("is wrong", code="wrong"))) == line


def test_nearest_ignores_case_and_keeps_the_spelling() -> None:
    assert nearest("lstm", ["NONE", "LSTM", "SCALAR"]) == ["LSTM"]
    assert nearest("xyz", ["NoGate", "LstmGate"]) == []


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("okvq", ["wit", "okvqa", "wit"], "; did you mean okvqa? choices: wit, okvqa"),
        ("zzz", ["wit", None, True], "; choices: wit, null, true"),
        ("x", [], ""),
        ("option7", [f"option{i}" for i in range(20)], "; did you mean option7 or option17 or option9?"),
    ],
)
def test_choices_lists_few_options_and_the_nearest_of_many(name: str, options: list, text: str) -> None:
    assert choices(name, options) == text


def test_choices_of_many_lists_three_if_none_is_near() -> None:
    text = choices("q", [f"option{i}" for i in range(13)])
    assert text.startswith("; nearest of 13: ")
    assert len(text.partition(": ")[2].split(", ")) == 3


@pytest.mark.parametrize("value", [None, True, False, 3, -0.5])
def test_value_is_formatted_as_yaml(value: object) -> None:
    assert yaml.safe_load(format_value(value)) == value


def test_long_value_is_truncated() -> None:
    assert format_value("a" * 58) == repr("a" * 58)
    assert format_value("a" * 59) == "'" + "a" * 56 + "..."
