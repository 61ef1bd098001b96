"""The start method of child processes, and their termination together with their parent."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time


def use_default_start_method() -> None:
    """Set the start method of this process to Python's default.

    A joblib worker uses the start method of loky, which data loaders and process pools do not support.
    """
    if multiprocessing.get_start_method(allow_none=True) not in (None, "fork", "spawn", "forkserver"):
        multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)


def exit_with_parent(parent: int) -> None:
    """Exit this process within a second after its parent has ended for any reason.

    Args:
        parent: Process id of the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
