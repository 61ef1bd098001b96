"""Overrides that cannot be parsed, and the quoted argument in their messages."""

from __future__ import annotations

import shlex

import pytest

from ret_lightning.config.checker.overrides import check_sweep, command_line_source, parse


@pytest.mark.parametrize(
    "text",
    ["/data/Müller", "/data/東京", "/data/a (1)", "/d/(x)", "f(1)", "it's", 'a "b"', "#1", "a;b", "x!", "a&b", "a=b c",
     "<x>", "a^b", "`x`", "~/x y", "a{b", "C:\\data\\ü", "[ü", "\\ü\\"],
)  # fmt: skip
def test_invalid_value_prints_quoted_argument(text: str) -> None:
    line = f"data.root={text}"
    settings, problems = parse([line], [command_line_source(line)])
    assert (settings, [problem.code for problem in problems]) == ([], ["override-needs-quotes"])
    error = problems[0].error
    assert f"use {error.expected}" in error.message
    assert "Exception" not in error.message
    (argument,) = shlex.split(error.expected)  # as a shell would pass it
    (setting,), wrong = parse([argument], [argument])
    assert wrong == []
    assert (setting.key_or_group, setting.value()) == ("data.root", text)


@pytest.mark.parametrize(
    ("line", "expected", "value"),
    [
        ("data.subsets=[wit,Müller]", """'data.subsets=[wit,"Müller"]'""", ["wit", "Müller"]),
        (
            "data.instructions={wit:x,oven:für}",
            """'data.instructions={wit:x,oven:"für"}'""",
            {"wit": "x", "oven": "für"},
        ),
    ],
)
def test_invalid_item_prints_quoted_argument(line: str, expected: str, value: object) -> None:
    error = parse([line], [line])[1][0].error
    typed = [error.expected]
    (setting,), _ = parse(shlex.split(typed[0]), typed)
    assert setting.value() == value
    assert error.expected == expected


@pytest.mark.parametrize("line", ["seed", "dätä=1", "a b=1", "data.weights={Müller:2}"])
def test_invalid_key_prints_no_argument(line: str) -> None:
    (problem,) = parse([line], [line])[1]
    assert problem.code == "override-unreadable"


def test_comma_prints_list_and_string() -> None:
    line = "data.root=/data/a,b"
    (setting,), _ = parse([line], [command_line_source(line)])
    problem = check_sweep(setting, multirun=False)
    assert problem.code == "sweep-without-multirun"
    for argument, value in (("'data.root=[/data/a,b]'", ["/data/a", "b"]), ("'data.root=\"/data/a,b\"'", "/data/a,b")):
        assert argument in problem.error.message
        assert parse(shlex.split(argument), [""])[0][0].value() == value
