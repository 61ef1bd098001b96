"""Importing the packages that the user named in RET_LIGHTNING_TARGETS, where a checkpoint or a saved index needs them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from ret_lightning.config.targets.allowed_targets import OWN_PACKAGES, is_in, own_packages


def import_own_packages(modules: Sequence[str]) -> str:
    """Import the packages in RET_LIGHTNING_TARGETS, and modules of these packages.

    Args:
        modules: that a checkpoint or a saved index names; those outside the user's packages are not imported.

    Returns:
        What failed, for error messages, or how to allow the modules; empty where there is nothing to say.
    """
    packages, failed = own_packages(), []
    for name in dict.fromkeys((*(module for module in modules if is_in(module, packages)), *packages)):
        try:
            import_module(name)
        except Exception as error:  # anything may happen in code of the user's
            reason = (str(error).splitlines() or [""])[0]
            failed.append(f"importing {name} failed ({type(error).__name__}: {reason})")
    others = [module for module in modules if not is_in(module, packages)]
    if others:
        allowed = ",".join((*packages, *dict.fromkeys(module.partition(".")[0] for module in others)))
        failed.append(f"import {', '.join(others)} first, or set {OWN_PACKAGES}={allowed}, which commands import")
    return "; ".join(failed)
