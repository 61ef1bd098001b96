"""Import of the object that a dotted name in a config refers to."""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from ret_lightning.config.config_errors import choices, nearest
from ret_lightning.config.targets.target_aliases import current_target
from ret_lightning.errors import ConfigError


class UnknownTarget(ConfigError):
    """A dotted name that cannot be imported; the message states the missing part and the alternatives."""


def locate(target: str) -> Any:
    """Import the object that a dotted name refers to.

    Each part of the name is looked up as an attribute, then as a submodule. Names of earlier versions are accepted.

    Raises:
        UnknownTarget: if a part of the name does not exist, or its module cannot be imported.
    """
    first, *rest = current_target(target).split(".")
    if not all(part.isidentifier() for part in (first, *rest)):
        raise UnknownTarget(f"expected a dotted name, got {target!r}", code="target-not-dotted", found=target)
    found: Any = _import(first)
    if found is None:
        raise UnknownTarget(f"package {first} is not installed", code="target-package-missing", found=first)
    for part in rest:
        found = _get_member(found, part)
    return found


def is_imported(target: str) -> bool:
    """Return whether the object that `locate` would return is already imported."""
    module, _, name = current_target(target).rpartition(".")
    return name in vars(sys.modules.get(module, object))


def _import(name: str) -> ModuleType | None:
    """Import the module of this name; return None if it does not exist."""
    try:
        return import_module(name)
    except SyntaxError as error:
        raise UnknownTarget(
            f"{error.filename}:{error.lineno}: syntax error: {error.msg}",
            code="target-broken-source",
            path=error.filename,
            line=error.lineno,
        ) from error
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            return None
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UnknownTarget(
            f"import of module {name} failed: {reason}", code="target-module-failed", found=name, reason=reason
        ) from error


def _get_member(owner: Any, name: str) -> Any:
    found = getattr(owner, name, owner)
    if found is not owner:
        return found
    if isinstance(owner, ModuleType):
        if hasattr(owner, "__path__") and (module := _import(f"{owner.__name__}.{name}")) is not None:
            return module
        text = _describe_missing_name(owner, name)
        raise UnknownTarget(text, code="target-not-in-module", found=name, module=owner.__name__)
    if not isinstance(owner, type):
        text = f"{owner.__module__}.{owner.__qualname__} is a function and has no attribute {name}"
        raise UnknownTarget(text, code="target-inside-function", found=name)
    methods = [key for key in dir(owner) if key[0] != "_" and callable(getattr(owner, key))]
    full = f"{owner.__module__}.{owner.__qualname__}"
    text = f"no {name} in the class {full}{choices(name, methods)}"
    raise UnknownTarget(text, code="target-not-in-class", found=name, owner=full)


def _describe_missing_name(module: ModuleType, name: str) -> str:
    """Return a message that a module has no such class, function or module, with the available names."""
    names = sorted((key for key in dir(module) if key[0] != "_"), key=str.lower)
    own = [key for key in names if getattr(vars(module).get(key), "__module__", None) == module.__name__]
    if name[0].isupper():
        classes = [key for key in own if isinstance(vars(module)[key], type)]
        if not nearest(name, classes):
            classes = [key for key in names if key[0].isupper()]
        return f"no class {name} in {module.__name__}{choices(name, classes)}"
    submodules = [each.name for each in pkgutil.iter_modules(getattr(module, "__path__", ())) if each.name[0] != "_"]
    kind = "module or function" if hasattr(module, "__path__") else "function"
    functions = [key for key in own if not isinstance(vars(module)[key], type)]
    return f"no {kind} {name} in {module.__name__}{choices(name, [*submodules, *functions])}"
