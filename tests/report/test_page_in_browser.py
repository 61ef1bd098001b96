"""HTML page in headless Chromium: sorting, filtering, keyboard, layout, colours and print."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ret_lightning.report.report import write_report
from tests.support.m2kr_folder import write_folder
from tests.support.report_runs import SUBSETS, make_run

playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    corpus = write_folder(folder / "m2kr", subsets=SUBSETS)
    for gate, skill in (("lstm", 0.3), ("no_forget", 0.8), ("none", 0.5)):
        for seed in (1, 2):
            make_run(folder / f"runs/{gate}_{seed}", f"gate={gate}", seed=seed, root=corpus, skill=skill)
    make_run(folder / "runs/gone", finished=False, root=corpus)
    write_report(folder / "runs", folder / "report")
    return folder / "report/report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        # Chromium requires --no-sandbox for root, as in containers.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, page_file: Path) -> Iterator:
    """Open the page offline; afterwards check that it logged and requested nothing."""
    events: list[str] = []
    contexts = []

    def open_(**options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: events.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: events.append(f"error: {error}"))
        page.on("request", lambda request: request.url.startswith("data:") or events.append(f"request: {request.url}"))
        page.goto(page_file.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert events == [f"request: {page_file.as_uri()}"] * len(contexts)


def first_column(page) -> list[str]:
    return page.locator("#results tbody tr:not([hidden]) th").all_inner_texts()


def test_second_click_reverses_sorting(open_page) -> None:
    page = open_page()
    header = page.locator("#results thead th").nth(2)
    before = first_column(page)
    values = page.locator("#results tbody tr td:nth-child(3)")
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    ascending = [float(text) for text in values.all_inner_texts()]
    assert ascending == sorted(ascending)
    assert len(set(ascending)) > 1
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in values.all_inner_texts()] == ascending[::-1]
    page.locator("#results thead th").nth(0).locator("button").click()
    assert header.get_attribute("aria-sort") is None
    assert first_column(page) == sorted(before)


def test_empty_cells_are_sorted_last(open_page) -> None:
    page = open_page()
    button = page.locator("#results thead th").nth(5).locator("button")  # the baseline has no difference to itself
    for _ in range(2):
        button.click()
        assert "baseline" in first_column(page)[-1]


def test_page_is_usable_by_keyboard(open_page) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the results"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Filter the results"
    page.keyboard.type("NO_forget")
    assert first_column(page) == ["gate=no_forget"]
    assert page.locator("#results [role=status]").inner_text() == "1 of 3 displayed"
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    assert len(first_column(page)) == 3
    page.keyboard.press("Tab")  # focuses the table, which arrow keys scroll
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "variant"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert first_column(page)[0] == "gate=none"
    assert page.locator("#results [role=status]").inner_text() == "sorted by variant, descending"


def test_gallery_is_filtered(open_page) -> None:
    page = open_page()
    cards = page.locator("#gallery article")
    every = cards.count()
    page.locator("#gallery input").fill("okvqa fact")
    visible = page.locator("#gallery article:visible").count()
    assert 0 < visible < every
    assert page.locator("#gallery article:visible", has_text="infoseek_test").count() == 0


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_layout_fits_window_and_contrast(open_page, width: int, scheme: str) -> None:
    page = open_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    for selector in ("body", ".facts", "figcaption", "svg text", "a", ".tag"):
        assert contrast(page, selector) >= 4.5, selector  # WCAG 2.2, AA
    assert (luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.5) == (scheme == "light")


def test_page_prints_in_light_colours(open_page, tmp_path: Path) -> None:
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) == 1
    assert not page.locator("nav").is_visible()
    assert not page.locator("#results input").is_visible()
    page.emulate_media(media="screen")
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 2


def test_page_without_javascript(open_page) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator("#results tbody tr").count() == 3
    assert not page.locator("#results input").is_visible()


def contrast(page, selector: str) -> float:
    """Return the contrast ratio of the first matching element's text and the page background (WCAG 2.2)."""
    ink, ground = page.evaluate(
        """(selector) => {
            const element = document.querySelector(selector), style = getComputedStyle(element);
            return [element.closest("svg") ? style.fill : style.color, getComputedStyle(document.body).backgroundColor];
        }""",
        selector,
    )
    low, high = sorted([luminance(ink), luminance(ground)])
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)` (WCAG 2.2)."""
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
