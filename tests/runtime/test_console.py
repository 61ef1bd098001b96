"""Printing to a closed pipe or a full disk, tested with real processes and devices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LINES = """
import itertools, sys
from ret_lightning.errors import UserError
from ret_lightning.runtime.console import print_lines
count = 0
def lines():
    global count
    for count in range(200_000):
        yield "a line of text"
try:
    print_lines(lines())
except UserError as error:
    print(error, file=sys.stderr)
print(count, file=sys.stderr)
"""

TABLE = """
import sys
from rich.table import Table
from ret_lightning.errors import UserError
from ret_lightning.evaluation.metric_tables import print_tables
table = Table("a")
for _ in range(20_000):
    table.add_row("b")
try:
    print_tables([table])
except UserError as error:
    print(error, file=sys.stderr)
"""


def run_with_closed_pipe(program: str) -> tuple[int, str]:
    """Run a program whose standard output is closed after one line; return its exit code and standard error."""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    stderr = process.stderr.read().decode()
    return process.wait(), stderr


@pytest.mark.parametrize("program", [LINES, TABLE])
def test_closed_pipe_is_not_an_error(program: str) -> None:
    code, stderr = run_with_closed_pipe(program)
    assert code == 0
    if program == LINES:
        assert 0 < int(stderr) < 199_999  # the generator was not exhausted
    else:
        assert stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("program", [LINES, TABLE])
def test_full_disk_is_reported_in_one_line(program: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0
    line = "standard output: cannot be written (No space left on device) [stdout-not-written]"
    assert done.stderr.splitlines()[0] == line
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
