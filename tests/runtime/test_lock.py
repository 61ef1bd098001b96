"""The lock of a run folder."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ret_lightning.errors import UserError
from ret_lightning.runtime.lock import LOCK_FILE, alone_in, is_first_rank, refuse_locked

HOLD = """
import sys
from pathlib import Path
from ret_lightning.runtime.lock import alone_in
with alone_in(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_lock_is_released_when_its_process_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "locked\n"
    with pytest.raises(UserError) as error, alone_in(folder):
        pytest.fail("two processes in one folder")
    assert (error.value.code, error.value.folder) == ("folder-in-use", str(folder))
    first.send_signal(signal.SIGKILL)
    first.wait()
    with alone_in(folder):
        pass
    assert list(folder.iterdir()) == []


def test_lock_on_removed_file_is_retried(tmp_path: Path, monkeypatch) -> None:
    """A process can open the file before its holder removes it, and lock it afterwards."""
    flock, calls = fcntl.flock, []

    def late(file, operation: int) -> None:
        if not calls:
            (tmp_path / LOCK_FILE).unlink()
        calls.append(file)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with alone_in(tmp_path):
        assert len(calls) == 2
        with pytest.raises(UserError) as error, alone_in(tmp_path):
            pytest.fail("two processes in one folder")
        assert (error.value.code, error.value.folder) == ("folder-in-use", str(tmp_path))


def test_lock_does_not_block_other_folders(tmp_path: Path) -> None:
    with alone_in(tmp_path / "one"), alone_in(tmp_path / "two"):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "1"}, True),
        ({"RANK": "1", "LOCAL_RANK": "0"}, False),  # the first rank of another node
        ({"LOCAL_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"JSM_NAMESPACE_RANK": "0"}, True),
    ],
)
def test_only_first_rank_takes_lock(environment: dict[str, str], first: bool, monkeypatch, tmp_path: Path) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_rank() == first
    with alone_in(tmp_path):
        assert (tmp_path / LOCK_FILE).exists() == first  # other ranks take no lock


def test_locked_folder_is_refused_and_unchanged(tmp_path: Path) -> None:
    refuse_locked(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
    with alone_in(tmp_path):
        with pytest.raises(UserError) as error:
            refuse_locked(tmp_path)
        assert (error.value.code, error.value.folder) == ("folder-in-use", str(tmp_path))
    refuse_locked(tmp_path)
    (tmp_path / LOCK_FILE).touch()  # left by a killed process
    refuse_locked(tmp_path)
