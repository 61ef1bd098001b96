"""What a config may build.

A config is data: it may have come with a run folder or a checkpoint from elsewhere, and building it must not be a way to
run whatever its author likes. So a `_target_` is one of three, and everything else is refused before its module is
imported: a class or function of ours; a class, never a function, of the parts of libraries that are listed here; anything
in a package that the user named in the environment. Libraries are listed part by part because a whole one is too much:
PyTorch has classes that start a process as soon as they are made. What is built must also have been written in the parts
that are listed, so that a module which one of them happens to have imported opens no door.
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

OWN_PACKAGES = "RET_LIGHTNING_TARGETS"  # the environment variable: names of packages, with commas between

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
# What Hydra's own configs name.
_HYDRA_PARTS = ("hydra", "hydra_plugins", "logging", "colorlog")


def not_a_name(value: Any) -> ConfigError:
    """The error of a `_target_` that is no text."""
    return ConfigError(f"wants the dotted name of a class, got {value!r}", code="target-not-text", found=repr(value))


def not_callable(target: str) -> ConfigError:
    """The error of a `_target_` that names a module or a constant."""
    return ConfigError(f"{target} is no class or function", code="target-not-callable", found=target)


def target_refusal(target: str) -> ConfigError | None:
    """Why a config may not build this dotted name, or None where it may."""
    own = own_packages()
    if is_in(target, (_OURS, *_LIBRARY_PARTS, *own)):
        return None
    missing = tuple(name for name in own if not _is_installed(name))
    allowed = (_OURS, *_LIBRARY_PARTS, *(name for name in own if name not in missing))
    meant = nearest(target.rpartition(".")[0], _LIBRARY_PARTS, cutoff=0.85)
    hint = f"did you mean {meant[0]}.{target.rpartition('.')[2]}?" if meant else f"choices: {', '.join(allowed)}"
    own_hint = f"to allow a package of your own: {OWN_PACKAGES}=<its name>"
    if missing:
        own_hint += f"; {OWN_PACKAGES} names {', '.join(missing)}, which cannot be found"
    return ConfigError(
        f"a config may not build {target}; {hint} ({own_hint})",
        code="target-not-allowed",
        found=target,
        allowed=allowed,
        missing=missing,
    )


def built_refusal(target: str, module: str, *, is_class: bool) -> ConfigError | None:
    """Why a config may not build an allowed name, given the module that its object was written in."""
    if is_in(target, own_packages()):
        return None
    if not is_in(module, (_OURS, *_LIBRARY_PARTS)):
        return ConfigError(
            f"a config may not build {target}; it is a name for something in {module}",
            code="target-from-elsewhere",
            found=target,
            module=module,
        )
    if not is_class and not is_in(target, (_OURS,)):
        return ConfigError(
            f"a config may not call {target}; of a library it may build classes, not call functions",
            code="target-library-function",
            found=target,
        )
    return None


def allow_list(targets: Sequence[str]) -> dict[str, Any]:
    """The argument of Hydra's `instantiate` that allows these targets, which were checked here; Hydra 1.3 has none."""
    from hydra.utils import instantiate  # not on machines that only run experiments/benchmarks/gpu.py

    takes_list = "_execution_whitelist_" in signature(instantiate).parameters
    return {"_execution_whitelist_": list(targets)} if takes_list else {}


def hydra_allow_list() -> AbstractContextManager[Any]:
    """While this is open, Hydra builds callbacks and log handlers from its own parts and what our rule allows only.

    Hydra 1.3 has no such list, and builds anything.
    """
    import hydra.utils

    if not hasattr(hydra.utils, "execution_whitelist"):
        return nullcontext()
    parts = (_OURS, *_LIBRARY_PARTS, *own_packages(), *_HYDRA_PARTS)
    return hydra.utils.execution_whitelist([*parts, *(f"{part}.*" for part in parts)])


def own_packages() -> tuple[str, ...]:
    """The packages that the user named in RET_LIGHTNING_TARGETS."""
    return tuple(filter(None, (name.strip() for name in os.environ.get(OWN_PACKAGES, "").split(","))))


def _is_installed(package: str) -> bool:
    """Whether the first part of a dotted name can be found; nothing is imported for it."""
    first = package.partition(".")[0]
    try:
        return first in sys.modules or find_spec(first) is not None
    except ValueError:  # an empty name
        return False


def is_in(target: str, places: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of these, or inside one of them."""
    return any(target == place or target.startswith(f"{place}.") for place in places)
