"""Code blocks of the documentation, with the markers that state how they are tested."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

TESTED = ("bash", "console", "python")
REASONS = ("data", "gpu", "cluster", "network", "long")  # why a block is not run
_FENCE = re.compile(r"^```(\w+)(.*)$")
_MARKER = re.compile(r"^<!-- test: (run|compose|compile)\s*(.*?) -->$")


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: path below the root of the repository.
        line: of its first line.
        mode: run, compose or compile; empty: no marker.
        words: of the marker, after the mode.
        title: the file that it is written to.
    """

    page: str
    line: int
    language: str
    code: str
    mode: str
    words: tuple[str, ...]
    title: str

    @property
    def exit_code(self) -> int:
        """The exit code that a block is marked with."""
        return next((int(word.removeprefix("exit=")) for word in self.words if word.startswith("exit=")), 0)


def pages() -> list[Path]:
    """The README and every page that is written manually, or copied from a file of the root."""
    written = [file for file in sorted((ROOT / "docs/pages").rglob("*.md")) if not _is_generated(file)]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *written]


def blocks(file: Path) -> list[Block]:
    """The blocks of a page, in their order."""
    return list(_blocks(file))


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a shell block as words, without comments, prompts and what `console` shows as output."""
    text = re.sub(r"\\\n\s*", " ", code)
    prompts = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    for line in prompts or text.splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def expected_output(code: str) -> list[str]:
    """What a `console` block shows as output."""
    return [line for line in code.splitlines() if line.strip() and not line.startswith("$ ") and line.strip() != "..."]


def _is_generated(file: Path) -> bool:
    return "<!-- Written by docs/generate.py" in file.read_text(encoding="utf-8")[:200]


def _blocks(file: Path) -> Iterator[Block]:
    marker: re.Match[str] | None = None
    lines = iter(enumerate(file.read_text(encoding="utf-8").splitlines(), start=1))
    for number, line in lines:
        if fence := _FENCE.match(line):
            code = []
            for _, inner in lines:
                if inner == "```":
                    break
                code.append(inner)
            title = re.search(r'title="([^"]+)"', fence[2])
            yield Block(
                file.relative_to(ROOT).as_posix(),
                number,
                fence[1],
                "\n".join(code) + "\n",
                marker[1] if marker else "",
                tuple(marker[2].split()) if marker else (),
                title[1] if title else "",
            )
            marker = None
        elif line.strip():
            marker = _MARKER.match(line)
