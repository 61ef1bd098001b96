"""Atomic file writes, and the detection of full disks."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ret_lightning.errors import UserError

# Names of temporary files: .NAME.HOST.PID.RANDOM, .NAME.PID before version 0.2, and .tmpXXXXXX of safetensors.
UNFINISHED = re.compile(r"\..+\.\d+(\.[0-9a-f]{8})?|\.tmp\w{6}")
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` and rename it to `path` when the block ends without an exception.

    The folder is created if needed. The content is flushed to the disk before the rename, so neither a killed process nor
    a power failure leaves a partial file at `path`. If the block raises, an existing file at `path` is unchanged.

    Raises:
        UserError: `disk-full`, however the library that wrote the content reports it.
    """
    path = Path(path)
    existed = path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = temporary_name(path)
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    permissions = unfinished.stat().st_mode  # from the user's umask; some libraries restrict them further
    try:
        yield unfinished
        unfinished.chmod(permissions)
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(path)
    except Exception as error:
        size = unfinished.stat().st_size if unfinished.exists() else 0
        unfinished.unlink(missing_ok=True)
        if disk_is_full(error, path.parent, size):
            raise disk_full(path, "; the earlier file is unchanged" if existed else "") from error
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Return a name in the folder of `path` that no other process, on this machine or another, uses."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}")


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically.

    Raises:
        UserError: `disk-full`.
    """
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write several files into a folder, all of them or none. Other files in the folder are kept.

    Args:
        folder: Target folder, created if needed.
        files: Mapping of file name to content. The last file is renamed into place after all others.

    Raises:
        UserError: `disk-full`.
        OSError: if the folder cannot be written.
    """
    existed = folder.is_dir()
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    staged = temporary_name(folder / "unfinished" if existed else folder)
    try:
        staged.mkdir(parents=True)
        for name, content in files.items():
            with (staged / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if existed:
            for name in files:
                (staged / name).replace(folder / name)
        else:
            staged.rename(folder)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        _remove_empty(folder.absolute().parent, above)
        if disk_is_full(error, above):
            raise disk_full(folder) from error
        raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _remove_empty(folder: Path, above: Path) -> None:
    """Remove empty folders from `folder` up to, but not including, `above`."""
    with suppress(OSError):
        while folder != above:
            folder.rmdir()
            folder = folder.parent


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder. No process may be writing there."""
    for file in folder.glob(".*"):
        if UNFINISHED.fullmatch(file.name):
            file.unlink(missing_ok=True)


def disk_is_full(error: BaseException, folder: Path, size: int = 0) -> bool:
    """Return whether an exception was caused by a full disk or an exceeded quota.

    Native libraries report a failed write in various ways ("unexpected pos 19896256 vs 19896144"), so this function also
    tests whether the disk can allocate the space.

    Args:
        error: Exception raised during a write.
        folder: Folder that was written to.
        size: Bytes that had been written and were removed again.
    """
    if isinstance(error, UserError):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        if any(f"(os error {number})" in str(cause) for number in _FULL):  # the format of Rust libraries
            return True
        cause = cause.__cause__ or cause.__context__
    return isinstance(error, RuntimeError | OSError) and not _has_room(folder, size + (1 << 20))


def disk_full(path: Path, note: str = "") -> UserError:
    """Return the error for a full disk at a path."""
    return UserError(
        f"{path}: the disk is full or a quota is exceeded{note}; free some space", code="disk-full", path=str(path)
    )


def _has_room(folder: Path, size: int) -> bool:
    """Return whether the disk can allocate `size` bytes; True if the system cannot report it."""
    probe = temporary_name(folder / "probe")
    try:
        with probe.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        return error.errno not in _FULL
    except AttributeError:  # no posix_fallocate on this system
        return True
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return True
