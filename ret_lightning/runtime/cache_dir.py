"""The folder for cached files, which can be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/ret_lightning`, or `~/.cache/ret_lightning` if the variable is unset or a relative path.

    The XDG Base Directory Specification requires relative paths to be ignored.
    """
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache_home if cache_home.is_absolute() else Path.home() / ".cache") / "ret_lightning"
