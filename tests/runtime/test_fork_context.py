"""Workers forked from a process with unreachable objects and native threads, each test in a separate process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no fork, or another pthread")

GARBAGE = """
import gc, os, sys
from torch.utils.data import DataLoader
from ret_lightning.runtime.fork_context import fork_context

class Cycle:
    def __init__(self):
        self.itself = self
    def __del__(self):
        print("destroyed in the", "parent" if os.getpid() == parent else "worker", flush=True)

class Rows:
    def __len__(self):
        return 1
    def __getitem__(self, row):
        gc.collect()
        return row

parent = os.getpid()
gc.disable()
Cycle()
list(DataLoader(Rows(), num_workers=1, multiprocessing_context=fork_context()))
gc.collect()
"""

# Forks among native threads that enter Python, as gloo's do after a collective. The lock can still be acquired between
# the check and the fork, so one hang is allowed; without `wait_for_native_threads`, five or six of 2,000 forks hang.
NATIVE_THREADS = """
import ctypes, os, signal, time
from ret_lightning.runtime.fork_context import wait_for_native_threads

pthread = ctypes.CDLL(None)

@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
def into_python(_):
    return None

hung = 0
for _ in range(2000):
    for _ in range(8):
        thread = ctypes.c_ulong()
        if pthread.pthread_create(ctypes.byref(thread), None, into_python, None) == 0:
            pthread.pthread_detach(thread)
    wait_for_native_threads()
    child = os.fork()
    if child == 0:
        os._exit(0)
    until = time.monotonic() + 20
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > until:
            hung += 1
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.0005)
print(hung, "hung", flush=True)
"""


@pytest.mark.slow
def test_worker_does_not_collect_inherited_objects(tmp_path: Path) -> None:
    done = processes.run([sys.executable, "-c", GARBAGE], tmp_path)
    assert (done.returncode, done.stdout) == (0, "destroyed in the parent\n"), done.stderr


@pytest.mark.slow
def test_fork_among_native_threads_does_not_hang(tmp_path: Path) -> None:
    done = processes.run([sys.executable, "-c", NATIVE_THREADS], tmp_path)
    assert (done.returncode, done.stdout) in [(0, "0 hung\n"), (0, "1 hung\n")], done.stderr
