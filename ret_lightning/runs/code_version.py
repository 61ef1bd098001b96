"""Version of the code of a run: the git commit of the package's checkout, and whether files differ from it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TypedDict

TIMEOUT = 10  # seconds; git can be slow on a network file system


class CodeVersion(TypedDict):
    """A git commit, and whether the checkout has uncommitted changes or new files in the package.

    Attributes:
        commit: hash of the commit.
        dirty: whether a tracked file differs from the commit, or the package or conf/ has untracked files.
    """

    commit: str
    dirty: bool


def code_version(package: Path | None = None) -> CodeVersion | None:
    """Return the version of the checkout that the package is imported from, without any remote address.

    Args:
        package: folder of the package; None: the imported package.

    Returns:
        The version; None if the package is not part of a checkout, or git is missing or fails.
    """
    package = package or Path(__file__).parents[1]
    try:
        # Fails for a package installed inside another repository, where its files are not tracked.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(package, "rev-parse", "HEAD")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", ":/")
        new = _git(package, "ls-files", "--others", "--exclude-standard", ".", ":/conf")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changed or new)}


def _git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # do not lock the index: a commit may be in progress
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        timeout=TIMEOUT,
        env=environment,
    )
    return done.stdout.strip()
