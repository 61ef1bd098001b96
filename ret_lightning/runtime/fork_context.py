"""A fork that is safe in a process with garbage and with threads of native code, as a rank of DDP is.

Two things were seen to leave a forked worker waiting for ever, and with it all ranks:

- A worker is a copy of its parent, and so of objects that nobody holds any more and that the garbage collector has not come
  to yet. Collected in the worker, their destructors run where the threads that they talk to do not exist: that of the process
  group of an earlier run of a sweep waits for them. So a worker leaves alone what it inherited.
- Before Python 3.12 a child takes, before anything else, a lock of the interpreter that a thread of gloo or NCCL may have held
  at the fork: each takes it for a moment when it comes from outside into Python, as some do after a collective. So a fork gives
  way to those that are about to, and then waits for the lock.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
import time
from multiprocessing import context
from typing import Any

GIVE_WAY = 0.005  # seconds


def fork_context() -> context.BaseContext | None:
    """What starts the workers of data loaders and process pools; None, Python's own way, where that is no fork."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return _ForkContext() if method == "fork" else None


def let_threads_pass() -> None:
    """Waits until no native thread holds the lock that a forked child takes first; from Python 3.12 on none is needed."""
    if sys.version_info < (3, 12):
        time.sleep(GIVE_WAY)
        sys._current_frames()  # takes the lock in question, and releases it


if sys.platform != "win32":  # which does not fork

    class _ForkProcess(context.ForkProcess):
        @staticmethod
        def _Popen(process_obj: Any) -> Any:
            process_obj.collects_garbage = enabled = gc.isenabled()
            gc.disable()  # in the child until it has frozen what it inherited
            try:
                let_threads_pass()
                return context.ForkProcess._Popen(process_obj)
            finally:
                if enabled:
                    gc.enable()

        def _bootstrap(self, *args: Any, **kwargs: Any) -> Any:
            gc.freeze()
            if self.collects_garbage:
                gc.enable()
            return super()._bootstrap(*args, **kwargs)

    class _ForkContext(context.ForkContext):
        Process = _ForkProcess
