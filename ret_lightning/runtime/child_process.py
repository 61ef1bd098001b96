"""How processes start others, and end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time


def use_default_start_method() -> None:
    """Has this process start others as Python does by default, also in a worker of joblib.

    Such a worker starts processes by loky, which data loaders and process pools cannot use.
    """
    if multiprocessing.get_start_method(allow_none=True) not in (None, "fork", "spawn", "forkserver"):
        multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)


def end_with(parent: int) -> None:
    """Has this process end soon after its parent is gone, however that ended, since nobody waits for what it does.

    Args:
        parent: the id of the process that started this one.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
