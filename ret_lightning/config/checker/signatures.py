"""Signatures of classes and functions, with their annotations evaluated to types."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, get_type_hints

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Parameter:
    """A parameter that a config key can set.

    Attributes:
        name: name of the parameter.
        required: whether the parameter has no default.
        annotation: the annotation as a type; Any if it is missing or cannot be evaluated.
        nullable: whether the default is None, even if the annotation excludes None.
    """

    name: str
    required: bool
    annotation: Any = Any
    nullable: bool = False


@dataclass(frozen=True)
class Signature:
    """The parameters of a callable that can be passed by name.

    Attributes:
        parameters: the parameters by name, in order.
        accepts_any: whether other names are accepted as well (`**kwargs`).
    """

    parameters: Mapping[str, Parameter]
    accepts_any: bool = False


@cache
def signature_of(target: Any) -> Signature | None:
    """Return the signature of a class or function; None if Python cannot determine it."""
    try:
        function, parameters = _parameters(target)
    except (TypeError, ValueError):
        return None
    hints = _evaluate_hints(target, function, parameters)
    named = {
        each.name: Parameter(
            each.name,
            each.default is each.empty,
            hints.get(each.name, _declared_annotation(each)),
            each.default is None,
        )
        for each in parameters
        if each.kind in _NAMED
    }
    return Signature(named, accepts_any=any(each.kind is each.VAR_KEYWORD for each in parameters))


def _declared_annotation(parameter: inspect.Parameter) -> Any:
    """Return the annotation in a class's `__signature__`, for parameters that the constructor accepts as `**options`."""
    return (
        Any
        if parameter.annotation is parameter.empty or isinstance(parameter.annotation, str)
        else parameter.annotation
    )


def _parameters(target: Any) -> tuple[Callable[..., Any], list[inspect.Parameter]]:
    """Return the function behind a target, without its decorators, and the parameters of a call."""
    parameters = list(inspect.signature(target).parameters.values())
    is_class = isinstance(target, type)
    if not is_class:
        return inspect.unwrap(target), parameters
    if target.__init__ is object.__init__:
        return inspect.unwrap(target.__new__), parameters
    if not any(each.kind in _NAMED for each in parameters):  # a __new__(cls, *args, **kwargs) before the __init__
        parameters = list(inspect.signature(target.__init__).parameters.values())[1:]
    return inspect.unwrap(target.__init__), parameters


def _evaluate_hints(target: Any, function: Any, parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """Return the annotations that can be evaluated; names imported only for type checkers cannot."""
    if is_dataclass(target) and "__init__" in vars(target):
        function = target  # fields of base classes are annotated in other modules
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:
        hints = {each.name: each.annotation for each in parameters if each.annotation is not each.empty}
    names = getattr(function, "__globals__", {})
    return {name: hint for name, raw in hints.items() if (hint := _evaluate(raw, names)) is not None}


def _evaluate(annotation: Any, names: dict[str, Any]) -> Any:
    """Evaluate an annotation to a type; return None if its names are unknown."""
    try:
        for _ in range(2):  # each pass resolves one level of a recursive alias
            holder = SimpleNamespace(__annotations__={"value": annotation})
            annotation = get_type_hints(holder, names, include_extras=True)["value"]
    except Exception:
        return None
    return annotation
