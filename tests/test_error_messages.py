"""Every error code has one meaning, a golden message, and a test that asserts on it."""

from __future__ import annotations

import ast
import functools
import re
import sys

import pytest

from tests.support.paths import ASSETS, ROOT

sys.path.insert(0, str(ROOT / "docs"))
from error_codes import Code, error_codes, golden_text

sys.path.remove(str(ROOT / "docs"))

GOLDEN = ASSETS / "error_messages.txt"
# Messages of a library or of another function, of which no template can be extracted.
OPAQUE = {
    "checkpoint-config-missing", "config-not-composed", "config-unreadable", "override-refused", "pairs-not-a-list",
    "target-not-in-module", "tower-attribute-not-set",
}  # fmt: skip
COMMAND = "python docs/error_codes.py > tests/assets/error_messages.txt"
CODES = {each.code: each for each in error_codes()}


@functools.cache
def golden_entries() -> dict[str, str]:
    """Return the entries of the golden data by code."""
    entries = re.split(r"^(?=\S)", GOLDEN.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {entry.split()[0]: entry for entry in entries if entry}


def asserted_literals() -> set[str]:
    """Return the strings of the tests, and the codes in brackets within them."""
    found: set[str] = set()
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
                found.update(re.findall(r"\[([a-z0-9-]+)\]", node.value))
    return found


@pytest.mark.parametrize("code", sorted(CODES.keys() | golden_entries().keys()))
def test_message_equals_golden_entry(code: str) -> None:
    current = golden_text([CODES[code]]) if code in CODES else ""
    assert current == golden_entries().get(code, ""), f"if the change is intended, run: {COMMAND}"


def test_golden_data_is_sorted_and_complete() -> None:
    assert GOLDEN.read_text(encoding="utf-8") == golden_text(list(CODES.values())), f"run: {COMMAND}"
    assert len(CODES) > 400  # the scan covers the package


def test_code_has_one_class_and_module() -> None:
    """A code that several modules raise would have several meanings."""
    shared = [each for each in CODES.values() if len(each.kinds) > 1 or len(each.modules) > 1]
    assert shared == []


def test_every_code_has_a_template() -> None:
    """The text of a message is a literal, so that the golden data has it."""
    names = re.compile(r"(\s*\{[^{}]*\})*")
    assert {each.code for each in CODES.values() if any(map(names.fullmatch, each.messages))} == OPAQUE


def test_codes_are_kebab_case() -> None:
    assert [code for code in CODES if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)] == []


def test_every_code_is_asserted() -> None:
    assert sorted(CODES.keys() - asserted_literals()) == []


def test_all_templates_of_a_code_are_found(tmp_path) -> None:
    (tmp_path / "a.py").write_text(
        """
def check(path, size):
    if size:
        text = f"{path}: {'large' if size > 9 else 'small'}"
        raise DataError(text, code="size-wrong", path=path)
    raise own_error(path, "is missing", code="size-missing")

def own_error(path, text, *, code):
    return ConfigError(f"{path}: field {text}", code=code)
"""
    )
    (tmp_path / "b.py").write_text('raise UserError("other", code="size-wrong")')
    assert error_codes(tmp_path) == [
        Code("size-missing", ("ConfigError",), ("{path}: field is missing",), ("a",)),
        Code("size-wrong", ("DataError", "UserError"), ("{path}: large", "{path}: small", "other"), ("a", "b")),
    ]
