"""One process per folder: a lock that the system releases however the process ends."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ret_lightning.errors import UserError

log = logging.getLogger(__name__)

LOCK_FILE = ".running"
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # in Lightning's order


def is_first_rank() -> bool:
    """Whether this process is rank 0 by its environment, before any process group exists."""
    return next((os.environ[name] == "0" for name in _RANK_VARIABLES if name in os.environ), True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a second process out of a folder, which is created if needed. Other ranks than the first pass.

    Raises:
        UserError: if another process is at work there.
    """
    if not is_first_rank():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / LOCK_FILE):
        try:
            yield
        finally:
            (folder / LOCK_FILE).unlink(missing_ok=True)


def refuse_locked(folder: Path) -> None:
    """Raise UserError if another process is at work in a folder; nothing is written."""
    if (folder / LOCK_FILE).is_file():
        with _locked(folder / LOCK_FILE):
            pass


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    # Not 0: who held the lock removes the file before releasing it, and a process that opened it before has to try again.
    lock = FileLock(file, timeout=0.3, poll_interval=0.05)
    try:
        lock.acquire()
    except Timeout:
        raise _occupied(file.parent) from None
    except (OSError, NotImplementedError):  # a file system without locks
        log.debug("%s cannot be locked", file)
    try:
        yield
    finally:
        lock.release()


def _occupied(folder: Path) -> UserError:
    return UserError(
        f"output_dir={folder}: another process is at work there; wait for it, or choose another folder",
        code="folder-in-use",
        folder=str(folder),
    )
