"""One process per folder: a lock that the system releases however the process ends."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ret_lightning.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

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
    if not is_first_rank() or fcntl is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK_FILE
    with _locked(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def refuse_locked(folder: Path) -> None:
    """Raise UserError if another process is at work in a folder; nothing is written."""
    lock = folder / LOCK_FILE
    if fcntl is None or not lock.is_file():
        return
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _occupied(folder) from None
        except OSError:  # a file system without locks
            return


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    while True:
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _occupied(lock.parent) from None
            except OSError:  # a file system without locks
                log.debug("%s cannot be locked", lock)
            # Whoever held the lock may have removed the file since it was opened; another process would make a new one.
            if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                yield
                return


def _occupied(folder: Path) -> UserError:
    return UserError(
        f"output_dir={folder}: another process is at work there; wait for it, or choose another folder",
        code="folder-in-use",
        folder=str(folder),
    )
