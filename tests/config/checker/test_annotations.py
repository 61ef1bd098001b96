"""Values against annotations: what fits, and the words for what does not."""

from __future__ import annotations

from typing import Any

import pytest

from ret_lightning.config.checker.annotations import element_of, problem
from ret_lightning.config.checker.signatures import Parameter, signature_of
from ret_lightning.config.targets.locate import locate

TARGET = {"_target_": "anything"}

# Annotations as one would write them, values that fit, values that do not.
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
def test_the_element_of_a_union_is_that_of_the_kind_at_hand() -> None:
    annotation = signature_of(locate("ret_lightning.data.instructions.Instructions")).parameters["templates"].annotation
    item = Parameter("item", False, element_of(annotation, list))
    value = Parameter("value", False, element_of(annotation, dict))
    assert problem(item, "Find:") is None
    assert problem(item, ["Find:"]) is not None
    assert problem(value, ["Find:"]) is None
    assert problem(value, "Find:") is not None


@pytest.fixture(scope="module")
def signature(tmp_path_factory):
    """One function that has a parameter for each annotation, in a module of its own."""
    folder = tmp_path_factory.mktemp("annotated")
    lines = [
        "from __future__ import annotations",
        "import typing as t",
        "from collections.abc import Callable, Sequence",
        "from pathlib import Path",
        "from typing import Annotated, Any, Literal, Optional, Union",
        "from tests.support.config_targets import Gate, Kind, Level, Size",
        "JSON = Union[int, list['JSON'], dict[str, 'JSON']]",
        f"def annotated({', '.join(f'p{place}: {case[0]}' for place, case in enumerate(CASES))}, odd: int = None): ...",
    ]
    (folder / "annotated_part.py").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        found = signature_of(locate("annotated_part.annotated"))
    assert found is not None
    return found


@pytest.mark.parametrize("place", range(len(CASES)), ids=lambda place: CASES[place][0])
def test_what_fits_and_what_does_not(signature, place: int) -> None:
    _, right, wrong = CASES[place]
    parameter = signature.parameters[f"p{place}"]
    assert [value for value in right if problem(parameter, value) is not None] == []
    assert [value for value in wrong if problem(parameter, value) is None] == []


def test_none_fits_where_it_is_the_default(signature) -> None:
    assert problem(signature.parameters["odd"], None) is None
    assert problem(signature.parameters["odd"], "a") is not None


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        ("int | None", "a", "wants int or null, got 'a'"),
        ("str", 1984, "wants str, got 1984; quotes make it a string"),
        ("Literal['a', 'b']", "c", "wants one of the choices, got 'c'; choices: a, b"),
        ("Kind | None", "scaler", "got 'scaler'; did you mean scalar? choices: elementwise, scalar"),
        ("tuple[float, float]", [0.9], "wants a list of (float, float), got [0.9]"),
        ("tuple[int, ...]", "a", "wants a list of (int, ...), got 'a'"),
        ("Gate", "lstm", "wants Gate, got 'lstm'; it takes a mapping with a _target_"),
        ("bool", "yes" * 40, "..."),
    ],
)
def test_the_words_for_it(signature, annotation: str, value: Any, message: str) -> None:
    place = next(place for place, case in enumerate(CASES) if case[0] == annotation)
    error = problem(signature.parameters[f"p{place}"], value)
    assert error.code == "value-of-wrong-type"
    assert message in error.message
