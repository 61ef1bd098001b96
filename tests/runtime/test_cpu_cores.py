"""The number of usable cores, also on systems that do not report the affinity of a process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ret_lightning.runtime.cpu_cores import usable_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_usable_cores_respects_affinity() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from ret_lightning.runtime.cpu_cores import usable_cores; print(usable_cores())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize(("count", "expected"), [(7, 7), (None, 1)])
def test_usable_cores_without_affinity_counts_all(
    monkeypatch: pytest.MonkeyPatch, count: int | None, expected: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert usable_cores() == expected


def test_affinity_is_read_in_one_module_only() -> None:
    """Any other use of `sched_getaffinity` fails on macOS."""
    from ret_lightning import data

    package = os.path.dirname(os.path.dirname(data.__file__))
    found = subprocess.run(
        ["grep", "-rl", "--include=*.py", "sched_getaffinity", package], capture_output=True, text=True, check=True
    )
    assert [os.path.basename(path) for path in found.stdout.split()] == ["cpu_cores.py"]
