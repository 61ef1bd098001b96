"""The tests' own helper: a command that hangs is not waited for in vain, and shows where it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import processes

HANGS = """
import subprocess, sys, time
def waits_for_nobody():
    subprocess.run([sys.executable, "-c", "import time\\ndef child_waits():\\n time.sleep(60)\\nchild_waits()"])
waits_for_nobody()
"""


def test_what_a_hanging_command_and_its_children_are_at_is_told(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception) as failed:
        processes.run([sys.executable, "-c", HANGS], tmp_path, patience=4)
    assert "did not end in 4 s" in str(failed.value)
    assert "waits_for_nobody" in str(failed.value)
    assert "child_waits" in str(failed.value)


def test_a_command_that_ends_gives_code_and_both_streams(tmp_path: Path) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    done = processes.run([sys.executable, "-c", code], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
