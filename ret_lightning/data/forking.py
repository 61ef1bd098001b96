"""What makes it safe to fork a process that has other threads, as a loader does to start its workers among DDP's.

Two things were seen to leave a worker waiting for ever, and with it all ranks:

- A worker is a copy of its parent, and so of objects that nobody holds any more and that the garbage collector has not come
  to yet. Collected in the worker, their destructors run where the threads that they talk to do not exist: that of the process
  group of an earlier run of a sweep waits for them. So a worker leaves alone what it inherited.
- Before Python 3.12 a child takes, before anything else, a lock of the interpreter that a thread of gloo or NCCL may have held
  at the fork: each takes it for a moment when it comes from outside into Python, as some do after a collective. So a fork gives
  way to those that are about to, and then waits for the lock.
"""

from __future__ import annotations

import gc
import os
import sys
import time

GIVE_WAY = 0.005  # seconds


def _let_threads_pass() -> None:
    time.sleep(GIVE_WAY)
    sys._current_frames()  # takes the lock in question, and gives it back


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=gc.freeze)
    if sys.version_info < (3, 12):
        os.register_at_fork(before=_let_threads_pass)
