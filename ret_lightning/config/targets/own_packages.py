"""Import of the packages in RET_LIGHTNING_TARGETS that a checkpoint or a saved index needs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES, is_in, own_packages


def import_own_packages(modules: Sequence[str]) -> str:
    """Import the packages in RET_LIGHTNING_TARGETS, and modules of these packages.

    Args:
        modules: modules that a checkpoint or a saved index names; modules outside these packages are not imported.

    Returns:
        Failed imports and how to allow the other modules, for error messages; empty if all imports succeeded.
    """
    packages, failed = own_packages(), []
    for name in dict.fromkeys((*(module for module in modules if is_in(module, packages)), *packages)):
        try:
            import_module(name)
        except Exception as error:  # user code may raise any exception
            reason = (str(error).splitlines() or [""])[0]
            failed.append(f"import of {name} failed ({type(error).__name__}: {reason})")
    others = [module for module in modules if not is_in(module, packages)]
    if others:
        allowed = ",".join((*packages, *dict.fromkeys(module.partition(".")[0] for module in others)))
        failed.append(f"import {', '.join(others)} first, or set {OWN_PACKAGES}={allowed}")
    return "; ".join(failed)
