"""Files whose names are nearly the one that does not exist, for error messages: what the user may have meant."""

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

# Images may be missing by the million, from folders of millions of files on slow disks.
MOST_LISTED = 100_000  # names in one search
MOST_FOLDERS = 100  # below the root that are tried as a missing leading folder
MOST_SECONDS = 10.0  # for all searches of a process together; later ones find nothing
MOST_NAMED = 3
LONGEST_PATH = 4096  # characters, as on Linux; longer ones are not taken apart

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


class Near(NamedTuple):
    """The result of a search.

    Attributes:
        names: with `/` between folders; at most `MOST_NAMED`.
        cut: whether the search ended at a limit, so that there may be others.
    """

    names: tuple[str, ...] = ()
    cut: bool = False

    def hint(self, asked: str) -> str:
        """The end of an error message: the names and how they differ from `asked`; empty where there is nothing to report."""
        if self.names:
            return f"; near match: {', '.join(map(repr, self.names))} ({difference(asked, self.names[0])})"
        return f"; no near match among {MOST_LISTED:,} names, after which the search ended" if self.cut else ""


def name_key(name: str, without: tuple[str, ...] = ()) -> str:
    """What different spellings of a path have in common.

    Args:
        name: a path with `/` or backslashes between folders.
        without: steps of the conversion that are left out.
    """
    for step, change in _STEPS.items():
        if step not in without:
            name = change(name)
    return name


def tails(path: str) -> Iterator[str]:
    """A path without its first folder, without its first two, and so on down to the file name."""
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def difference(asked: str, found: str) -> str:
    """How two spellings of a path differ, in words."""
    steps = [step for step in _STEPS if not _same_end(name_key(asked, (step,)), name_key(found, (step,)))]
    if asked.startswith("/"):
        steps.append("leading slash")
    if name_key(asked).count("/") != name_key(found).count("/"):
        steps.append("leading folder")
    return ", ".join(steps) or "suffix"


def near_names(root: Path, asked: str) -> Near:
    """Files below a folder whose path is spelled nearly like one that does not exist.

    Spellings differ in letter case, Unicode normalisation, backslashes, percent-encoding, leading or trailing spaces, the
    suffix of an image, or leading folders that one of them lacks. Only folders on the path and the root are listed, up to
    `MOST_LISTED` names together.

    Args:
        root: the folder.
        asked: the path below it; a leading slash does not count.
    """
    if len(asked) > LONGEST_PATH:
        return Near()
    try:
        return timed_search(lambda: _Search(root, name_key(asked, _SPELLING)).near())
    except (OSError, ValueError):  # a folder that cannot be listed, a null byte
        return Near()


def timed_search(search: Callable[[], Near]) -> Near:
    """The result of a search; an empty one after `MOST_SECONDS` of searches in this process."""
    global _seconds
    if _seconds > MOST_SECONDS:
        return Near()
    start = time.monotonic()
    try:
        return search()
    finally:
        _seconds += time.monotonic() - start


def near_file(path: Path) -> Near:
    """Near matches of a file that does not exist, as paths that begin like `path`."""
    for folder in path.parents:
        if folder.is_dir():
            found = near_names(folder, str(path.relative_to(folder)))
            return found._replace(names=tuple(str(folder / name) for name in found.names))
    return Near()


class _Search:
    def __init__(self, root: Path, path: str) -> None:
        self.root = root
        self.paths = (path, *tails(path))
        self.wanted = {name_key(name) for tail in self.paths for name in (tail, tail.partition("/")[0])}
        self.left = MOST_LISTED
        self.cut = False
        self._listed: dict[Path, dict[str, list[str]]] = {}
        self._folders: dict[Path, list[str]] = {}

    def near(self) -> Near:
        """Near matches of the path, else of its tails, else of it below one more folder."""
        for path in self.paths:
            if found := tuple(islice(self._below(self.root, "", path), MOST_NAMED)):
                return Near(found)
        self._names(self.root)
        parent, file = posixpath.split(self.paths[0])
        below = (posixpath.join(name, parent) for name in sorted(self._folders[self.root]))
        found = (posixpath.join(at, name) for at in below for name in _spelled(self.root / at, file))
        return Near(tuple(islice(found, MOST_NAMED)), self.cut)

    def _below(self, folder: Path, prefix: str, path: str) -> Iterator[str]:
        first, slash, rest = path.partition("/")
        if slash and (folder / first).is_dir():
            yield from self._below(folder / first, f"{prefix}{first}/", rest)
            return
        # First without a listing, which would be cut in a folder of millions of files.
        if not slash and (found := _spelled(folder, path)):
            yield from (prefix + name for name in found)
            return
        names = self._names(folder)
        yield from (prefix + name for name in sorted(names.get(name_key(path), ())) if (folder / name).is_file())
        for name in sorted(names.get(name_key(first), ())) if slash else ():
            if (folder / name).is_dir():
                yield from self._below(folder / name, f"{prefix}{name}/", rest)

    def _names(self, folder: Path) -> dict[str, list[str]]:
        """The names in a folder that matter, by their keys."""
        if folder not in self._listed:
            names = self._listed[folder] = {}
            folders = self._folders[folder] = []
            with os.scandir(folder) as entries:
                for entry in entries:
                    if self.left == 0:
                        self.cut = True
                        break
                    self.left -= 1
                    if (key := name_key(entry.name)) in self.wanted:
                        names.setdefault(key, []).append(entry.name)
                    if len(folders) < MOST_FOLDERS and entry.is_dir():
                        folders.append(entry.name)
        return self._listed[folder]


def _same_end(path: str, other: str) -> bool:
    return path == other or path.endswith(f"/{other}") or other.endswith(f"/{path}")


def _without_suffix(name: str) -> str:
    dot = name.rfind(".")
    return name[:dot] if name[dot:].lower() in SUFFIXES else name


def _spelled(folder: Path, name: str) -> list[str]:
    """The files in a folder under the usual other spellings of a name, each once where the file system ignores case."""
    stem = _without_suffix(name)
    stems = {normalize(form, change(stem)) for form in ("NFC", "NFD") for change in (str, str.lower, str.upper)}
    suffixes = dict.fromkeys((name[len(stem) :], "", *SUFFIXES, *map(str.upper, SUFFIXES)))
    found: dict[tuple[int, int], str] = {}
    for spelled in map("".join, product(sorted(stems), suffixes)):
        if spelled and (folder / spelled).is_file():
            state = (folder / spelled).stat()
            found.setdefault((state.st_dev, state.st_ino), spelled)
    return list(found.values())
