"""Output whose reader goes away, or that cannot be written, with processes and devices as they are."""

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


def with_reader_gone(program: str) -> tuple[int, str]:
    """Its exit code and stderr, where somebody reads one line of it."""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read().decode()
    return process.wait(), said


@pytest.mark.parametrize("program", [LINES, TABLE])
def test_a_reader_that_has_seen_enough_is_no_error(program: str) -> None:
    code, said = with_reader_gone(program)
    assert code == 0
    if program == LINES:
        assert 0 < int(said) < 199_999  # nothing more is asked for
    else:
        assert said == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("program", [LINES, TABLE])
def test_a_full_disk_is_told_in_one_line(program: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0
    line = "standard output: cannot be written (No space left on device) [stdout-not-written]"
    assert done.stderr.splitlines()[0] == line
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
