"""What a class or function takes, with its annotations as types."""

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
    """One parameter that a config key can set."""

    name: str
    required: bool
    annotation: Any = Any  # also where the annotation cannot be evaluated
    nullable: bool = False  # the default is None, whatever the annotation says


@dataclass(frozen=True)
class Signature:
    """The parameters that can be given by name, in order; `open` where any other name is taken too (`**kwargs`)."""

    parameters: Mapping[str, Parameter]
    open: bool = False


@cache
def signature_of(target: Any) -> Signature | None:
    """The signature of a class or function; None where Python does not know it."""
    try:
        function, parameters = _parameters(target)
    except (TypeError, ValueError):
        return None
    hints = _hints(target, function, parameters)
    named = {
        each.name: Parameter(
            each.name, each.default is each.empty, hints.get(each.name, _given(each)), each.default is None
        )
        for each in parameters
        if each.kind in _NAMED
    }
    return Signature(named, open=any(each.kind is each.VAR_KEYWORD for each in parameters))


def _given(parameter: inspect.Parameter) -> Any:
    """The annotation of a parameter that a class's `__signature__` shows and its constructor takes as `**options`."""
    return (
        Any
        if parameter.annotation is parameter.empty or isinstance(parameter.annotation, str)
        else parameter.annotation
    )


def _parameters(target: Any) -> tuple[Callable[..., Any], list[inspect.Parameter]]:
    """What a call takes, and the function that takes it; its decorators are looked through."""
    parameters = list(inspect.signature(target).parameters.values())
    if not isinstance(target, type):
        return inspect.unwrap(target), parameters
    if target.__init__ is object.__init__:
        return inspect.unwrap(target.__new__), parameters
    if not any(each.kind in _NAMED for each in parameters):  # a __new__(cls, *args, **kwargs) before the __init__
        parameters = list(inspect.signature(target.__init__).parameters.values())[1:]
    return inspect.unwrap(target.__init__), parameters


def _hints(target: Any, function: Callable[..., Any], parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """The annotations that can be evaluated; one of them may name what is imported for type checkers only."""
    if is_dataclass(target) and "__init__" in vars(target):
        function = target  # the fields of its bases are annotated in other modules
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:
        hints = {each.name: each.annotation for each in parameters if each.annotation is not each.empty}
    names = getattr(function, "__globals__", {})
    return {name: hint for name, given in hints.items() if (hint := _evaluated(given, names)) is not None}


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    """An annotation as a type; None where its names are unknown."""
    try:
        for _ in range(2):  # each time the names in an alias that contains itself are replaced, once more
            alone = SimpleNamespace(__annotations__={"it": annotation})
            annotation = get_type_hints(alone, names, include_extras=True)["it"]
    except Exception:
        return None
    return annotation
