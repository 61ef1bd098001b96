"""User errors for library caches and temporary folders that are not writable."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from ret_lightning.errors import UserError

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOSPC, errno.EDQUOT)


def cache_error(error: BaseException) -> UserError | None:
    """Convert a library's exception about an unwritable cache or temporary folder into a `UserError`.

    Returns:
        An error that names the folder and the environment variable that changes it; None for any other exception.
    """
    if isinstance(error, UserError):
        return None
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return UserError(
            "no temporary folder is writable; set the environment variable TMPDIR to a writable folder",
            code="temporary-folder-not-writable",
            variable="TMPDIR",
        )
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE and error.filename is not None:
        path = Path(os.path.abspath(os.fsdecode(error.filename)))
        for variable, folder in _folders():
            if path.is_relative_to(folder) and (variable != "TMPDIR" or _is_temporary(path.relative_to(folder))):
                return UserError(
                    f"{path}: the cache is not writable ({error.strerror}); set the environment variable {variable} to a "
                    f"folder other than {folder}",
                    code="cache-not-writable",
                    path=path,
                    variable=variable,
                )
    return None if error.__cause__ is None else cache_error(error.__cause__)


def _is_temporary(path: Path) -> bool:
    """Return whether Python created the name, as opposed to a user who works in the temporary folder."""
    return not path.parts or path.parts[0].startswith(("tmp", "pymp-"))


def _folders() -> list[tuple[str, Path]]:
    """Return each environment variable with its folder, the most deeply nested folders first."""
    home = Path.home()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hugging_face = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError:
        temporary = Path("/tmp")
    defaults = {
        "HF_DATASETS_CACHE": hugging_face / "datasets",
        "HF_HUB_CACHE": hugging_face / "hub",
        "HF_HOME": hugging_face,
        "TORCHINDUCTOR_CACHE_DIR": temporary / f"torchinductor_{os.environ.get('USER', 'root')}",
        "TRITON_CACHE_DIR": home / ".triton",
        "WANDB_CACHE_DIR": cache / "wandb",
        "MPLCONFIGDIR": home / ".config/matplotlib",
        "XDG_CACHE_HOME": cache,
        "TMPDIR": temporary,
    }
    named = [(name, Path(os.path.abspath(os.environ.get(name) or default))) for name, default in defaults.items()]
    return sorted(named, key=lambda each: len(each[1].parts), reverse=True)
