"""The default number of processes, also where the system does not say which cores a process may use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ret_lightning.runtime.cpu_cores import usable_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no processes")
def test_pinned_process_counts_its_cores() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from ret_lightning.runtime.cpu_cores import usable_cores; print(usable_cores())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize(("count", "expected"), [(7, 7), (None, 1)])
def test_without_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch, count: int | None, expected: int) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert usable_cores() == expected


def test_nothing_else_asks_the_system() -> None:
    """Each such place would fail on macOS."""
    from ret_lightning import data

    package = os.path.dirname(os.path.dirname(data.__file__))
    found = subprocess.run(
        ["grep", "-rl", "--include=*.py", "sched_getaffinity", package], capture_output=True, text=True, check=True
    )
    assert [os.path.basename(path) for path in found.stdout.split()] == ["cpu_cores.py"]
