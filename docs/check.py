"""Check the built documentation for what a strict Zensical build lets through.

    python docs/check.py

It fails on a page that the navigation lacks or that does not exist, on a link, anchor or image of the built pages that leads
nowhere, on a reference to a network other than a plain link, and on a public name that has no docstring or no entry in the API.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import griffe
from generate import DOCS, PAGES, ROOT, public_names

SITE = DOCS / "site"


class _Page(HTMLParser):
    """The ids of a page, what it links to, and what it loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids.update(filter(None, (found.get("id"), found.get("name") if tag == "a" else None)))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if "src" in found or (tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload")):
            self.loaded.append(found.get("src") or found["href"])


def problems() -> Iterator[str]:
    """All that is wrong, one line each."""
    yield from _navigation()
    yield from _links()
    yield from _names()


def _navigation() -> Iterator[str]:
    listed = set(re.findall(r'= "([\w./-]+\.md)"', (DOCS / "zensical.toml").read_text(encoding="utf-8")))
    there = {file.relative_to(PAGES).as_posix() for file in PAGES.rglob("*.md")}
    yield from (f"docs/zensical.toml: the page {name} does not exist" for name in sorted(listed - there))
    yield from (f"docs/pages/{name}: the navigation in docs/zensical.toml lacks it" for name in sorted(there - listed))


def _links() -> Iterator[str]:
    pages = {file: _Page(file) for file in SITE.rglob("*.html")}
    if not pages:
        yield f"{SITE}: no page was built"
    for file, page in pages.items():
        where = file.relative_to(SITE)
        for link in {*page.links, *page.loaded}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    yield f"{where}: loads {link} from a network"
                continue
            if where.name == "404.html":  # its links are absolute
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{where}: {link} does not exist"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                yield f"{where}: {link} has no such anchor"


def _names() -> Iterator[str]:
    package = griffe.load("ret_lightning", search_paths=[str(ROOT)], resolve_aliases=True, allow_inspection=False)
    ids = _Page(SITE / "reference" / "api.html").ids
    for module, names in public_names().items():
        for name in names:
            member = package[f"{module}.{name}".removeprefix("ret_lightning.")]
            if f"{module}.{name}" not in ids:
                yield f"reference/api.html: {module}.{name} has no entry"
            if (member.is_class or member.is_function) and not member.has_docstring:
                yield f"{module}.{name}: a public name without a docstring"


if __name__ == "__main__":
    found = list(problems())
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(f"{len(found)} problems in the documentation" if found else 0)
