"""Allow-list of the targets that a config may build.

A config may come with a run folder or a checkpoint from elsewhere, so building it must not run arbitrary code. A `_target_` is
refused before its module is imported, unless it is

1. a class or function of this package,
2. a class of the library modules listed below, or
3. anything in a package that the user named in the environment variable RET_LIGHTNING_TARGETS.

Library modules are listed one by one because some classes of PyTorch start a process when they are created. The module that
defines the object must be listed as well, so that a name imported into a listed module is refused.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from inspect import signature
from typing import Any

from ret_lightning.config.config_errors import nearest
from ret_lightning.errors import ConfigError

OWN_PACKAGES = "RET_LIGHTNING_TARGETS"  # environment variable: package names separated by commas

_OURS = "ret_lightning"
_LIBRARY_PARTS = (
    "lightning.Trainer",
    "lightning.fabric.plugins",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.accelerators",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.trainer",
    "torch.nn",
    "torch.optim",
    "torchmetrics",
)
# Targets of Hydra's own configs.
_HYDRA_PARTS = ("hydra", "hydra_plugins", "logging", "colorlog")


def target_type_error(value: object) -> ConfigError:
    """Return the error of a `_target_` that is not a string."""
    text = f"expected the dotted name of a class, got {value!r}"
    return ConfigError(text, code="target-not-text", found=repr(value))


def not_callable_error(target: str) -> ConfigError:
    """Return the error of a `_target_` that names a module or a constant."""
    return ConfigError(f"expected a class or function, got {target}", code="target-not-callable", found=target)


def check_target_name(target: str) -> ConfigError | None:
    """Return the error of a dotted name that is not on the allow-list; None if the name is allowed."""
    own = own_packages()
    if is_in(target, (_OURS, *_LIBRARY_PARTS, *own)):
        return None
    missing = tuple(name for name in own if not _is_installed(name))
    allowed = (_OURS, *_LIBRARY_PARTS, *(name for name in own if name not in missing))
    meant = nearest(target.rpartition(".")[0], _LIBRARY_PARTS, cutoff=0.85)
    hint = f"did you mean {meant[0]}.{target.rpartition('.')[2]}?" if meant else f"choices: {', '.join(allowed)}"
    own_hint = f"to allow your own package, set {OWN_PACKAGES}=<package>"
    if missing:
        own_hint += f"; {OWN_PACKAGES} names packages that are not installed: {', '.join(missing)}"
    return ConfigError(
        f"a config may not build {target}; {hint} ({own_hint})",
        code="target-not-allowed",
        found=target,
        allowed=allowed,
        missing=missing,
    )


def check_target_origin(target: str, module: str, *, is_class: bool) -> ConfigError | None:
    """Return the error of an allowed name whose object is defined in another module; None if the object may be built.

    Args:
        target: the dotted name, accepted by `check_target_name`.
        module: name of the module that defines the object.
        is_class: whether the object is a class.
    """
    if is_in(target, own_packages()):
        return None
    if not is_in(module, (_OURS, *_LIBRARY_PARTS)):
        return ConfigError(
            f"a config may not build {target}: it is defined in {module}, which is not allowed",
            code="target-from-elsewhere",
            found=target,
            module=module,
        )
    if not is_class and not is_in(target, (_OURS,)):
        return ConfigError(
            f"a config may not call {target}: only classes of a library are allowed, not functions",
            code="target-library-function",
            found=target,
        )
    return None


def allow_list(targets: Sequence[str]) -> dict[str, Any]:
    """Return the keyword argument of Hydra's `instantiate` that allows checked targets; empty for Hydra 1.3."""
    from hydra.utils import instantiate  # imported here: experiments/benchmarks/gpu.py runs without Hydra

    takes_list = "_execution_whitelist_" in signature(instantiate).parameters
    return {"_execution_whitelist_": list(targets)} if takes_list else {}


def hydra_allow_list() -> AbstractContextManager[Any]:
    """Return a context manager in which Hydra builds callbacks and log handlers from allowed targets only.

    Hydra 1.3 has no allow-list; the context manager then has no effect.
    """
    import hydra.utils

    if not hasattr(hydra.utils, "execution_whitelist"):
        return nullcontext()
    parts = (_OURS, *_LIBRARY_PARTS, *own_packages(), *_HYDRA_PARTS)
    return hydra.utils.execution_whitelist([*parts, *(f"{part}.*" for part in parts)])


def own_packages() -> tuple[str, ...]:
    """Return the packages that the user named in RET_LIGHTNING_TARGETS."""
    return tuple(filter(None, (name.strip() for name in os.environ.get(OWN_PACKAGES, "").split(","))))


def _is_installed(package: str) -> bool:
    """Return whether the first part of a dotted name can be found, without importing it."""
    first = package.partition(".")[0]
    try:
        return first in sys.modules or find_spec(first) is not None
    except ValueError:  # an empty name
        return False


def is_in(target: str, packages: tuple[str, ...]) -> bool:
    """Return whether a dotted name is one of the packages or inside one of them."""
    return any(target == package or target.startswith(f"{package}.") for package in packages)
