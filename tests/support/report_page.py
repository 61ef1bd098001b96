"""A report page, parsed: what a browser would fetch, its text, ids and links."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "input", "img", "br"}

# Elements of SVG that are written without an end tag.
CLOSED = {"path", "rect", "circle"}


class Page(HTMLParser):
    """What a browser would have to fetch, and whether tags, ids and links fit together."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.images: list[str] = []
        self.addresses: list[str] = []
        self.titles = 0
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(tag, dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def _attributes(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.titles += "title" in attributes
        for name in ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"):
            if (value := attributes.get(name)) is None:
                continue
            if value.startswith("#"):
                self.targets.append(value[1:])
            elif tag == "img":
                self.images.append(value)
            else:
                self.addresses.append(value)


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())
