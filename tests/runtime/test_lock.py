"""One process a run folder."""

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
    print("there", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_kept_out_until_the_first_one_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "there\n"
    with pytest.raises(UserError, match="another process is at work there"), alone_in(folder):
        pytest.fail("two in one folder")
    first.send_signal(signal.SIGKILL)
    first.wait()
    with alone_in(folder):
        pass
    assert list(folder.iterdir()) == []


def test_a_lock_on_a_file_that_is_gone_is_none(tmp_path: Path, monkeypatch) -> None:
    """A process may open the file before the one that holds it removes it, and lock it after that."""
    flock, calls = fcntl.flock, []

    def late(file, operation: int) -> None:
        if not calls:
            (tmp_path / LOCK_FILE).unlink()
        calls.append(file)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with alone_in(tmp_path):
        assert len(calls) == 2
        with pytest.raises(UserError, match="another process is at work there"), alone_in(tmp_path):
            pytest.fail("two in one folder")


def test_other_folders_are_free(tmp_path: Path) -> None:
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
def test_first_rank_by_the_environment(environment: dict[str, str], first: bool, monkeypatch, tmp_path: Path) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_rank() == first
    with alone_in(tmp_path):
        assert (tmp_path / LOCK_FILE).exists() == first  # other ranks take no lock


def test_locked_folder_is_refused_without_a_change(tmp_path: Path) -> None:
    refuse_locked(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
    with alone_in(tmp_path):
        with pytest.raises(UserError) as error:
            refuse_locked(tmp_path)
        assert (error.value.code, error.value.folder) == ("folder-in-use", str(tmp_path))
    refuse_locked(tmp_path)
    (tmp_path / LOCK_FILE).touch()  # of a process that was killed
    refuse_locked(tmp_path)
