"""Extract the error codes from the source: code, class, message templates and module. Needs the standard library only.

    python docs/error_codes.py > tests/assets/error_messages.txt

prints every code with its class and the templates of its message, the golden data of tests/test_error_messages.py. It reads
source files and imports no part of the package.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "ret_lightning"


@dataclass(frozen=True)
class Code:
    """One error.

    Attributes:
        code: The code.
        kinds: Its classes; a code has one.
        messages: The templates of its message, with the names of the values in braces. There are several where the message
            contains a conditional expression or where several source locations raise the error.
        modules: The modules that raise it.
    """

    code: str
    kinds: tuple[str, ...]
    messages: tuple[str, ...]
    modules: tuple[str, ...]


def error_codes(package: Path = PACKAGE) -> list[Code]:
    """Return all codes in the source files of a package, sorted."""
    found: dict[str, list[tuple[str, list[str], str]]] = {}
    for file in sorted(package.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        module = ".".join(file.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        for call, scope in _calls(tree):
            for keyword in call.keywords:
                if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                    found.setdefault(str(keyword.value.value), []).append(
                        (*_kind_and_messages(call, scope, tree), module)
                    )
    return [
        Code(
            code,
            _unique(kind for kind, _, _ in at),
            _unique(message for _, messages, _ in at for message in messages),
            _unique(module for _, _, module in at),
        )
        for code, at in sorted(found.items())
    ]


def golden_text(codes: list[Code]) -> str:
    """Return the golden data: per code a line `code class`, then one indented line per template."""
    return "".join(
        f"{each.code} {' '.join(each.kinds)}\n" + "".join(f"    {message}\n" for message in each.messages)
        for each in codes
    )


def _unique(texts: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _calls(tree: ast.Module) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Yield the calls with the enclosing function."""

    def visit(node: ast.AST, scope: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                yield child, scope
            yield from visit(child, child if isinstance(child, ast.FunctionDef) else scope)

    return visit(tree, tree)


def _kind_and_messages(call: ast.Call, scope: ast.AST, tree: ast.Module) -> tuple[str, list[str]]:
    """Return the class and the templates of an error; for a call of a function that creates errors, what it creates."""
    name = ast.unparse(call.func).rpartition(".")[2]
    messages = _messages(call, scope)
    if name[:1].isupper():
        return name, messages
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name):
        for made in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if any(keyword.arg == "code" for keyword in made.keywords) and ast.unparse(made.func)[:1].isupper():
                around = _messages(made, function)
                filled = [
                    text.replace(_text_parameter(around, function), message) for text in around for message in messages
                ]
                return ast.unparse(made.func), filled if any("{" in text for text in around) else messages
    return "UserError", messages


def _text_parameter(around: list[str], function: ast.FunctionDef) -> str:
    """Return the placeholder of the parameter that a function inserts into its message; the last one, as a rule the text."""
    names = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
    inside = [name for name in names if "{" + name + "}" in around[0]]
    return "{" + inside[-1] + "}" if inside else around[0]


def _messages(call: ast.Call, scope: ast.AST) -> list[str]:
    """Return the templates of the argument with the longest text."""
    return max((_templates(argument, scope, call.lineno) for argument in call.args), key=_longest, default=[""])


def _longest(texts: list[str]) -> int:
    return max(map(len, texts))


def _templates(node: ast.expr, scope: ast.AST, line: int) -> list[str]:
    """Return the templates of an expression: one per combination of the branches of its conditional expressions."""
    if isinstance(node, ast.Constant):
        return [" ".join(str(node.value).split("\n"))]
    if isinstance(node, ast.JoinedStr):
        parts = [
            [str(part.value)] if isinstance(part, ast.Constant) else _filled(part.value, scope, line)
            for part in node.values
        ]
        return ["".join(texts) for texts in itertools.product(*parts)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = (_templates(side, scope, line) for side in (node.left, node.right))
        return [first + second for first in left for second in right]
    if isinstance(node, ast.IfExp):
        return _templates(node.body, scope, line) + _templates(node.orelse, scope, line)
    if isinstance(node, ast.Name):
        assigned = [
            each for each in ast.walk(scope)
            if isinstance(each, ast.Assign) and each.lineno <= line
            and any(isinstance(t, ast.Name) and t.id == node.id for t in each.targets)
        ]  # fmt: skip
        if assigned:
            value = max(assigned, key=lambda each: each.lineno).value
            if isinstance(value, ast.JoinedStr | ast.BinOp | ast.IfExp | ast.Constant):
                return _templates(value, scope, line)
    return ["{" + _short(node) + "}"]


def _filled(node: ast.expr, scope: ast.AST, line: int) -> list[str]:
    """Return the templates of an expression in braces: its name, or both branches of a conditional text."""
    if isinstance(node, ast.IfExp):
        return _templates(node, scope, line)
    return ["{" + _short(node) + "}"]


def _short(node: ast.expr) -> str:
    text = ast.unparse(node)
    if re.fullmatch(r"[\w.]+", text) and len(text) <= 30:
        return text
    return (re.findall(r"[A-Za-z_]\w*", text) or ["..."])[-1]


if __name__ == "__main__":
    print(golden_text(error_codes()), end="")
