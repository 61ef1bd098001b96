"""Which code a run is made by: the commit of the package's checkout, and whether files differ from it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TypedDict

SECONDS = 10  # git on a slow network file system; a run does not wait longer for a note on where it comes from


class CodeVersion(TypedDict):
    """A commit, and whether the checkout had changes beside it: tracked files anywhere, new files in the package."""

    commit: str
    dirty: bool


def code_version(package: Path | None = None) -> CodeVersion | None:
    """The version of the checkout that the package is imported from.

    Nothing of the repository but its commit is told, no address of a remote in particular.

    Args:
        package: its folder; None: the one that is imported.

    Returns:
        None where the package is installed without a checkout, or git is missing or refuses.
    """
    package = package or Path(__file__).parents[1]
    try:
        # An installed package may lie inside a repository that is not its own: there it is not tracked.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(package, "rev-parse", "HEAD")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", ":/")
        new = _git(package, "ls-files", "--others", "--exclude-standard", ".", ":/conf")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changed or new)}


def _git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # someone may be committing meanwhile
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        timeout=SECONDS,
        env=environment,
    )
    return done.stdout.strip()
