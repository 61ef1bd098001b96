"""Config values against annotations: matching values, and the error of the others."""

from __future__ import annotations

from typing import Any

import pytest

from ret_lightning.config.checker.annotations import check_value, element_annotation
from ret_lightning.config.checker.signatures import Parameter, signature_of
from ret_lightning.config.targets.locate import locate

TARGET = {"_target_": "anything"}

# Annotations, values that match, values that do not.
CASES: list[tuple[str, list[Any], list[Any]]] = [
    ("int", [3, -1], [3.0, True, "3", None, [3], {"a": 3}]),
    ("float", [3, 0.5, float("inf")], [True, "0.5", None]),
    ("bool", [True], [1, "true", None]),
    ("str", ["a", ""], [1, None, True, ["a"]]),
    ("None", [None], [1, "null"]),
    ("int | None", [1, None], ["a", 1.5]),
    ("Optional[int]", [1, None], ["a"]),
    ("t.Optional[Union[int, str]]", [1, "a", None], [1.5, [1]]),
    ("'int | None'", [1, None], ["a"]),
    ("Literal['a', 'b']", ["a"], ["c", 1, None]),
    ("Literal[1, 2]", [1], [3, True, "1"]),
    ("Kind | None", ["elementwise", None], ["elementwize"]),
    ("Literal[Level.LOW]", ["anything"], []),
    ("list[int]", [[], [1, 2]], [1, ["a"], [1, None], "ab"]),
    ("Sequence[float]", [[1, 2.5]], ["ab", [[1.0]]]),
    ("list", [[1, "a"]], ["a", {"a": 1}]),
    ("tuple[float, float]", [[0.9, 1]], [[0.9], [0.9, 1, 1], 0.9, ["a", "b"]]),
    ("tuple[int, ...]", [[], [1, 2, 3]], [["a"]]),
    ("dict[str, int]", [{}, {"a": 1}, TARGET], [{"a": "b"}, [1], 1]),
    ("dict", [{"a": "b"}], ["a"]),
    ("Path", ["a/b"], [3, ["a"]]),
    ("Size", [3, [3, 4]], ["a", 1.5]),
    ("Gate", [TARGET, {"hidden": 1}], [3, "lstm", None, True]),
    ("Gate | None", [TARGET, None], ["lstm"]),
    ("Callable[[int], int]", [TARGET], ["len", 3]),
    ("Level", ["LOW", 1], []),
    ("Any", [1, "a", None, [1]], []),
    ("Annotated[int, 'metres']", [1], ["a"]),
    ("Unknown", [1, "a"], []),
    ("JSON", [1, [1, [2]], {"a": [1]}], ["a", ["a"]]),
    ("int", ["${seed}", "???"], []),
    ("list[int]", [["${seed}"]], []),
]


@pytest.mark.slow
def test_element_annotation_of_a_union() -> None:
    annotation = signature_of(locate("ret_lightning.data.instructions.Instructions")).parameters["templates"].annotation
    item = Parameter("item", False, element_annotation(annotation, list))
    value = Parameter("value", False, element_annotation(annotation, dict))
    assert check_value(item, "Find:") is None
    assert check_value(item, ["Find:"]) is not None
    assert check_value(value, ["Find:"]) is None
    assert check_value(value, "Find:") is not None


@pytest.fixture(scope="module")
def signature(tmp_path_factory):
    """Signature of a function with one parameter per annotation, in a separate module."""
    folder = tmp_path_factory.mktemp("annotated")
    lines = [
        "from __future__ import annotations",
        "import typing as t",
        "from collections.abc import Callable, Sequence",
        "from pathlib import Path",
        "from typing import Annotated, Any, Literal, Optional, Union",
        "from tests.support.config_targets import Gate, Kind, Level, Size",
        "JSON = Union[int, list['JSON'], dict[str, 'JSON']]",
        f"def annotated({', '.join(f'p{index}: {case[0]}' for index, case in enumerate(CASES))}, odd: int = None): ...",
    ]
    (folder / "annotated_part.py").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        found = signature_of(locate("annotated_part.annotated"))
    assert found is not None
    return found


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda index: CASES[index][0])
def test_value_matches_annotation(signature, index: int) -> None:
    _, valid, invalid = CASES[index]
    parameter = signature.parameters[f"p{index}"]
    assert [value for value in valid if check_value(parameter, value) is not None] == []
    assert [value for value in invalid if check_value(parameter, value) is None] == []


def test_none_matches_as_the_default(signature) -> None:
    assert check_value(signature.parameters["odd"], None) is None
    assert check_value(signature.parameters["odd"], "a") is not None


@pytest.mark.parametrize(
    ("annotation", "value", "expected", "found", "allowed"),
    [
        ("int | None", "a", "int or null", "'a'", ()),
        ("str", 1984, "str", "1984", ()),
        ("Literal['a', 'b']", "c", "one of the choices", "'c'", ("a", "b")),
        ("Kind | None", "scaler", "one of the choices or null", "'scaler'", ("elementwise", "scalar")),
        ("tuple[float, float]", [0.9], "a list of (float, float)", "[0.9]", ()),
        ("tuple[int, ...]", "a", "a list of (int, ...)", "'a'", ()),
        ("Gate", "lstm", "Gate", "'lstm'", ()),
        ("bool", "yes" * 40, "bool", "'" + "yes" * 18 + "ye...", ()),
    ],
)
def test_error_has_expected_and_found_value(
    signature, annotation: str, value: Any, expected: str, found: str, allowed: tuple[str, ...]
) -> None:
    index = next(index for index, case in enumerate(CASES) if case[0] == annotation)
    error = check_value(signature.parameters[f"p{index}"], value)
    assert error.code == "value-of-wrong-type"
    assert error.values == {"expected": expected, "found": found, "allowed": allowed}


@pytest.mark.parametrize(
    ("annotation", "value", "hint"),
    [("str", 1984, "quote"), ("Kind | None", "scaler", "scalar?"), ("Gate", "lstm", "_target_")],
)
def test_error_has_a_hint(signature, annotation: str, value: Any, hint: str) -> None:
    index = next(index for index, case in enumerate(CASES) if case[0] == annotation)
    assert hint in check_value(signature.parameters[f"p{index}"], value).message
