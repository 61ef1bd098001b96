"""The start method of child processes, and their termination with their parent."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import pytest

from ret_lightning.runtime.child_process import use_default_start_method

# A process that starts a child, passes it its own id, and waits to be killed. The child inherits standard output.
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
child.wait()
"""
CHILD = """
import sys, threading
from ret_lightning.runtime.child_process import exit_with_parent
exit_with_parent(int(sys.argv[1]))
print("started", flush=True)
threading.Event().wait()
"""


def test_child_exits_when_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "started\n"
    parent.kill()
    assert parent.stdout.read() == ""  # end of file: the child has closed its standard output
    parent.wait()


def test_child_exits_when_parent_has_ended_before() -> None:
    other = subprocess.Popen([sys.executable, "-c", ""])
    other.wait()
    alone = subprocess.run([sys.executable, "-c", CHILD, str(other.pid)], stdout=subprocess.PIPE)
    assert alone.returncode == 1


def child_exit_code() -> int | None:
    use_default_start_method()
    process = multiprocessing.Process(target=os.getpid)
    process.start()
    process.join()
    return process.exitcode


def test_joblib_worker_can_start_processes() -> None:
    joblib = pytest.importorskip("joblib")
    calls = [joblib.delayed(child_exit_code)() for _ in range(2)]
    assert joblib.Parallel(n_jobs=2, backend="loky")(calls) == [0, 0]


def test_start_method_of_user_is_kept() -> None:
    before = multiprocessing.get_start_method(allow_none=True)
    use_default_start_method()
    assert multiprocessing.get_start_method(allow_none=True) == before
