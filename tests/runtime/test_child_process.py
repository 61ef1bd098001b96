from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import pytest

from ret_lightning.runtime.child_process import use_default_start_method

# A process that starts another one, tells its id, and waits to be killed; the other one holds the same standard output.
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
child.wait()
"""
CHILD = """
import sys, threading
from ret_lightning.runtime.child_process import end_with
end_with(int(sys.argv[1]))
print("there", flush=True)
threading.Event().wait()
"""


def test_a_child_ends_when_its_parent_was_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "there\n"
    parent.kill()
    assert parent.stdout.read() == ""  # the end of the file: nobody holds the other end any more
    parent.wait()


def test_one_whose_parent_is_gone_already_ends_at_once() -> None:
    other = subprocess.Popen([sys.executable, "-c", ""])
    other.wait()
    alone = subprocess.run([sys.executable, "-c", CHILD, str(other.pid)], stdout=subprocess.PIPE)
    assert alone.returncode == 1


def exit_code_of_a_process() -> int | None:
    use_default_start_method()
    process = multiprocessing.Process(target=os.getpid)
    process.start()
    process.join()
    return process.exitcode


def test_worker_of_joblib_starts_processes() -> None:
    joblib = pytest.importorskip("joblib")
    calls = [joblib.delayed(exit_code_of_a_process)() for _ in range(2)]
    assert joblib.Parallel(n_jobs=2, backend="loky")(calls) == [0, 0]


def test_start_method_of_the_user_is_kept() -> None:
    before = multiprocessing.get_start_method(allow_none=True)
    use_default_start_method()
    assert multiprocessing.get_start_method(allow_none=True) == before
