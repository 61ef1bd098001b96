"""Error codes are unique and survive pickling and loader workers."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import ret_lightning
from ret_lightning.errors import (
    ConfigError,
    DataError,
    Stopped,
    TokenError,
    UserError,
    one_line,
    original_error,
    split_code,
)

PACKAGE = Path(ret_lightning.__file__).parent


def test_code_and_values_are_attributes() -> None:
    error = ConfigError("data.batch_size=0 must be at least 1", code="batch-size", key="data.batch_size", found=0)
    assert (error.code, error.key, error.found) == ("batch-size", "data.batch_size", 0)
    assert error.message == "data.batch_size=0 must be at least 1"
    assert str(error) == "data.batch_size=0 must be at least 1 [batch-size]"
    with pytest.raises(AttributeError, match="ConfigError has no attribute 'line'"):
        _ = error.line


def test_error_without_code_prints_message_only() -> None:
    assert str(UserError("no room")) == "no room"


@pytest.mark.parametrize(
    "error",
    [
        UserError("a", code="b", path=Path("c")),
        DataError("a", "missing_image", code="b", line=3),
        TokenError("a", code="b"),
        Stopped("a", 15, code="b", step=7),
    ],
)
def test_error_survives_pickling(error: UserError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.code, copy.values, copy.exit_code) == (
        str(error),
        error.code,
        error.values,
        error.exit_code,
    )
    assert getattr(copy, "kind", None) == getattr(error, "kind", None)


class _Broken(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise DataError("rows.jsonl:8: field passage_id is missing", "missing_field", code="missing-field", line=8)


def test_code_survives_loader_worker() -> None:
    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(_Broken(), num_workers=1)))
    assert str(caught.value) == "rows.jsonl:8: field passage_id is missing [missing-field]"
    assert caught.value.code == "missing-field"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a: b [missing-field]", ("a: b", "missing-field")),
        ("a: b", ("a: b", None)),
        ("a [b] c", ("a [b] c", None)),
        ("data.subsets=[wit, iglue]", ("data.subsets=[wit, iglue]", None)),
    ],
)
def test_split_code(line: str, expected: tuple[str, str | None]) -> None:
    assert split_code(line) == expected


PENDING = ()
TREES = {path.relative_to(PACKAGE): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
ATTRIBUTES = {"args", "exit_code", "message", "values"}  # of every error; no names for values


def _name(node: ast.expr) -> str:
    return getattr(node, "id", getattr(node, "attr", ""))


def _error_classes() -> set[str]:
    """Return the names of `UserError` and of the package's classes derived from it."""
    statements = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found, before = {"UserError"}, set()
    while found != before:
        before = set(found)
        found |= {node.name for node in statements if before & set(map(_name, node.bases))}
    return found


def _calls() -> Iterator[tuple[str, ast.Call, set[str]]]:
    """Yield every call in the package: its source location, the call, and the parameters of the enclosing functions."""

    def below(node: ast.AST, parameters: set[str]) -> Iterator[tuple[ast.Call, set[str]]]:
        if isinstance(node, ast.FunctionDef):
            parameters = parameters | {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
        if isinstance(node, ast.Call):
            yield node, parameters
        for child in ast.iter_child_nodes(node):
            yield from below(child, parameters)

    for path, tree in TREES.items():
        if not any(path.match(pattern) for pattern in PENDING):
            for call, parameters in below(tree, set()):
                yield f"{path}:{call.lineno}", call, parameters


def test_every_error_has_code() -> None:
    """A code is a literal, the code of another error, or an argument of the enclosing function."""
    classes, wrong = _error_classes(), []
    for location, call, parameters in _calls():
        if _name(call.func) in classes:
            keywords = {keyword.arg: keyword.value for keyword in call.keywords}
            code = keywords.get("code")
            literal = isinstance(code, ast.Constant) and isinstance(code.value, str)
            quoted = isinstance(code, ast.Attribute) and code.attr == "code"
            passed = isinstance(code, ast.Name) and code.id == "code" and "code" in parameters
            if not (literal or quoted or passed) or keywords.keys() & ATTRIBUTES:
                wrong.append(location)
    assert wrong == []


def test_codes_are_kebab_case_and_unique() -> None:
    locations: dict[str, list[str]] = {}
    for location, call, _ in _calls():
        for keyword in call.keywords:
            if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                locations.setdefault(keyword.value.value, []).append(location)
    assert [code for code in locations if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+){1,4}", code)] == []
    assert {code: at for code, at in locations.items() if len(at) > 1} == {}
    assert len(locations) > 200  # the scan covers the package


def test_teardown_error_does_not_hide_original() -> None:
    def fit(first: Exception) -> Exception:
        def _teardown() -> None:
            raise RuntimeError("Please call iter(combined_loader) first")

        try:
            try:
                raise first
            except Exception:
                _teardown()
        except RuntimeError as error:
            return error

    for first in (AttributeError("no attribute 'env'"), DataError("a.png does not exist", code="image-missing")):
        assert original_error(fit(first)) is first

    try:
        try:
            {}["key"]
        except KeyError:
            raise ValueError("key is missing")  # noqa: B904 -- raised outside a teardown
    except ValueError as error:
        assert original_error(error) is error


def test_one_line_reports_original_worker_error() -> None:
    text = "Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  x\nKeyError: 'a'\n"
    assert one_line(RuntimeError(text)) == "KeyError: 'a'"
    assert one_line(ZeroDivisionError("a bug\nmore")) == "ZeroDivisionError: a bug"
    assert one_line(ZeroDivisionError()) == "ZeroDivisionError"
