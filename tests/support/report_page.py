"""Parser of a report's HTML page: text, ids, link targets and external resources."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "input", "img", "br"}


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        open: tags without an end tag.
        ids: all `id` attributes.
        targets: ids that links refer to.
        images: `src` of all images.
        addresses: all other addresses that a browser would fetch.
        titles: number of `title` attributes.
        text: text outside of scripts and styles.
    """

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
