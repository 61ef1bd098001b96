"""Search for files with a name similar to one that does not exist, for error messages."""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")

# Limits, because millions of images may be missing, in folders of millions of files on slow disks.
MAX_LISTED = 100_000  # names per search
MAX_FOLDERS = 100  # subfolders of the root that are tried as a missing leading folder
MAX_SECONDS = 10.0  # of all searches of a process together; later searches return nothing
MAX_MATCHES = 3
MAX_PATH_LENGTH = 4096  # characters, as on Linux; longer paths are not searched

_STEPS: dict[str, Callable[[str], str]] = {
    "percent-encoding": unquote,
    "backslashes": lambda name: name.replace("\\", "/"),
    "slashes": lambda name: posixpath.normpath(name).lstrip("/"),
    "leading or trailing spaces": lambda name: "/".join(part.strip() for part in name.split("/")),
    "suffix": lambda name: _without_suffix(name),
    "letter case": str.casefold,
    "Unicode normalisation": lambda name: normalize("NFC", name),
}
_SPELLING = ("suffix", "letter case", "Unicode normalisation")

_seconds = 0.0


class NearMatches(NamedTuple):
    """Result of a search for similar names.

    Attributes:
        names: paths of the matches, with `/` between folders; at most `MAX_MATCHES`.
        is_partial: whether the search stopped at a limit, so that there may be further matches.
    """

    names: tuple[str, ...] = ()
    is_partial: bool = False

    def hint(self, requested: str) -> str:
        """Return the end of an error message: the matches and how they differ; empty if there is nothing to report.

        Args:
            requested: the path that does not exist.
        """
        if self.names:
            return f"; near match: {', '.join(map(repr, self.names))} ({describe_difference(requested, self.names[0])})"
        return f"; no near match among the first {MAX_LISTED:,} names" if self.is_partial else ""


def normalize_name(name: str, without: tuple[str, ...] = ()) -> str:
    """Normalize a path, so that different spellings of it become equal.

    Args:
        name: a path with `/` or backslashes between folders.
        without: steps of the normalization to skip.
    """
    for step, change in _STEPS.items():
        if step not in without:
            name = change(name)
    return name


def iter_tails(path: str) -> Iterator[str]:
    """Iterate over a path without its first folder, without its first two, and so on down to the file name."""
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def describe_difference(requested: str, found: str) -> str:
    """Return how two spellings of a path differ, in words, such as `letter case, suffix`."""
    steps = [
        step
        for step in _STEPS
        if not _have_same_end(normalize_name(requested, (step,)), normalize_name(found, (step,)))
    ]
    if requested.startswith("/"):
        steps.append("leading slash")
    if normalize_name(requested).count("/") != normalize_name(found).count("/"):
        steps.append("leading folder")
    return ", ".join(steps) or "suffix"


def find_near_names(root: Path, requested: str) -> NearMatches:
    """Find files in a folder whose path is similar to one that does not exist.

    Paths are similar if they differ only in letter case, Unicode normalisation, backslashes, percent-encoding, leading or
    trailing spaces, the suffix of an image, or leading folders. The search lists the root and the folders of the path, at most
    `MAX_LISTED` names.

    Args:
        root: the folder.
        requested: path relative to the folder; a leading slash is ignored.
    """
    if len(requested) > MAX_PATH_LENGTH:
        return NearMatches()
    try:
        return run_search(lambda: _Search(root, normalize_name(requested, _SPELLING)).run())
    except (OSError, ValueError):  # a folder that cannot be listed, a null byte
        return NearMatches()


def run_search(search: Callable[[], NearMatches]) -> NearMatches:
    """Run a search, or return no matches if searches of this process have taken `MAX_SECONDS`."""
    global _seconds
    if _seconds > MAX_SECONDS:
        return NearMatches()
    start = time.monotonic()
    try:
        return search()
    finally:
        _seconds += time.monotonic() - start


def find_near_files(path: Path) -> NearMatches:
    """Find files with a path similar to one that does not exist.

    Args:
        path: path of a file that does not exist.

    Returns:
        The matches, relative or absolute as `path` is.
    """
    for folder in path.parents:
        if folder.is_dir():
            found = find_near_names(folder, str(path.relative_to(folder)))
            return found._replace(names=tuple(str(folder / name) for name in found.names))
    return NearMatches()


class _Search:
    def __init__(self, root: Path, path: str) -> None:
        self.root = root
        self.paths = (path, *iter_tails(path))
        self.relevant = {normalize_name(name) for tail in self.paths for name in (tail, tail.partition("/")[0])}
        self.remaining = MAX_LISTED
        self.is_partial = False
        self._listed: dict[Path, dict[str, list[str]]] = {}
        self._folders: dict[Path, list[str]] = {}

    def run(self) -> NearMatches:
        """Find matches of the path, else of its tails, else of the path in a subfolder."""
        for path in self.paths:
            if found := tuple(islice(self._find_below(self.root, "", path), MAX_MATCHES)):
                return NearMatches(found)
        self._list_names(self.root)
        parent, file = posixpath.split(self.paths[0])
        below = (posixpath.join(name, parent) for name in sorted(self._folders[self.root]))
        matches = (posixpath.join(at, name) for at in below for name in _find_spellings(self.root / at, file))
        return NearMatches(tuple(islice(matches, MAX_MATCHES)), self.is_partial)

    def _find_below(self, folder: Path, prefix: str, path: str) -> Iterator[str]:
        first, slash, rest = path.partition("/")
        if slash and (folder / first).is_dir():
            yield from self._find_below(folder / first, f"{prefix}{first}/", rest)
            return
        # First without a listing, which would reach its limit in a folder of millions of files.
        if not slash and (found := _find_spellings(folder, path)):
            yield from (prefix + name for name in found)
            return
        names = self._list_names(folder)
        yield from (prefix + name for name in sorted(names.get(normalize_name(path), ())) if (folder / name).is_file())
        for name in sorted(names.get(normalize_name(first), ())) if slash else ():
            if (folder / name).is_dir():
                yield from self._find_below(folder / name, f"{prefix}{name}/", rest)

    def _list_names(self, folder: Path) -> dict[str, list[str]]:
        """List the relevant names in a folder, by normalized name."""
        if folder not in self._listed:
            names = self._listed[folder] = {}
            folders = self._folders[folder] = []
            with os.scandir(folder) as entries:
                for entry in entries:
                    if self.remaining == 0:
                        self.is_partial = True
                        break
                    self.remaining -= 1
                    if (key := normalize_name(entry.name)) in self.relevant:
                        names.setdefault(key, []).append(entry.name)
                    if len(folders) < MAX_FOLDERS and entry.is_dir():
                        folders.append(entry.name)
        return self._listed[folder]


def _have_same_end(path: str, other: str) -> bool:
    return path == other or path.endswith(f"/{other}") or other.endswith(f"/{path}")


def _without_suffix(name: str) -> str:
    dot = name.rfind(".")
    return name[:dot] if name[dot:].lower() in SUFFIXES else name


def _find_spellings(folder: Path, name: str) -> list[str]:
    """Find the files in a folder under common other spellings of a name, without duplicates if the file system ignores case."""
    stem = _without_suffix(name)
    stems = {normalize(form, change(stem)) for form in ("NFC", "NFD") for change in (str, str.lower, str.upper)}
    suffixes = dict.fromkeys((name[len(stem) :], "", *SUFFIXES, *map(str.upper, SUFFIXES)))
    found: dict[tuple[int, int], str] = {}
    for spelled in map("".join, product(sorted(stems), suffixes)):
        if spelled and (folder / spelled).is_file():
            state = (folder / spelled).stat()
            found.setdefault((state.st_dev, state.st_ino), spelled)
    return list(found.values())
