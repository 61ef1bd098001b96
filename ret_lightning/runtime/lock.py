"""A lock on a folder. The operating system releases it when the process ends, for any reason."""

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
    """Return whether the environment declares this process to be rank 0. Works before a process group exists."""
    return next((os.environ[name] == "0" for name in _RANK_VARIABLES if name in os.environ), True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder, which is created if needed, for the duration of the block. Only the first rank takes the lock.

    Raises:
        UserError: If another process holds the lock.
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
    """Raise UserError if another process holds the lock of a folder. Nothing is written."""
    if (folder / LOCK_FILE).is_file():
        with _locked(folder / LOCK_FILE):
            pass


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    # Not 0: the holder removes the file before it releases the lock, so a process that has opened the file must retry.
    lock = FileLock(file, timeout=0.3)  # polls every 0.05 s by default
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
        f"output_dir={folder}: the folder is in use by another process; wait for it to finish or choose another folder",
        code="folder-in-use",
        folder=str(folder),
    )
