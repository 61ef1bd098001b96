"""Handling of SIGTERM: a terminated command prints a message, cleans up, and exits with 143."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ret_lightning.errors import Stopped


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise `Stopped` in the main thread on SIGTERM. A training run replaces this handler while it trains."""
    is_usable = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if not is_usable:
        yield
        return
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked worker: use the default handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        raise Stopped("stopped by SIGTERM", number, code="stopped-by-sigterm")

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
