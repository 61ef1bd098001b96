"""The number of CPU cores, which is the default number of worker processes."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return the number of cores available to this process; all cores on macOS and Windows, which do not report it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
