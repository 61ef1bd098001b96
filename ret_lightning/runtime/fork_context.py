"""A multiprocessing context whose fork does not deadlock in a DDP rank.

Two causes make a forked worker, and with it all ranks, wait forever:

- The worker inherits unreachable objects that the parent's garbage collector has not freed yet. Their destructors, for
  example that of a process group, wait for threads that do not exist in the worker. The worker therefore freezes them.
- Before Python 3.12, a forked child first acquires an interpreter lock that a native thread of gloo or NCCL may have held
  at the fork. Such a thread acquires it briefly when it enters Python, for example after a collective. The parent
  therefore waits for these threads, and then for the lock, before it forks.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
import time
from multiprocessing import context
from typing import Any

NATIVE_THREADS_DELAY = 0.005  # seconds


def fork_context() -> context.BaseContext | None:
    """Return the multiprocessing context for data loaders and process pools; None if the start method is not fork."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return _ForkContext() if method == "fork" else None


def wait_for_native_threads() -> None:
    """Wait until no native thread holds the lock that a forked child acquires first; a no-op from Python 3.12 on."""
    if sys.version_info < (3, 12):
        time.sleep(NATIVE_THREADS_DELAY)
        sys._current_frames()  # acquires and releases this lock


if sys.platform != "win32":  # Windows has no fork

    class _ForkProcess(context.ForkProcess):
        collects_garbage: bool

        @staticmethod
        def _Popen(process_obj: Any) -> Any:
            process_obj.collects_garbage = enabled = gc.isenabled()
            gc.disable()  # in the child, until `_bootstrap` has frozen the inherited objects
            try:
                wait_for_native_threads()
                return context.ForkProcess._Popen(process_obj)
            finally:
                if enabled:
                    gc.enable()

        def _bootstrap(self, *args: Any, **kwargs: Any) -> Any:
            gc.freeze()
            if self.collects_garbage:
                gc.enable()
            return super()._bootstrap(*args, **kwargs)  # type: ignore[misc]  # not in typeshed

    class _ForkContext(context.ForkContext):
        Process = _ForkProcess
