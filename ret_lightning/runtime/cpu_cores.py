"""How many processes work is spread over by default."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """The cores that this process may use; where the system does not say (macOS, Windows), all of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
