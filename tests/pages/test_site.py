"""The documentation as a reader has it: built strictly, opened from a disk, without a network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
WIDE, NARROW = (1440, False), (360, True)  # width in pixels, and whether it is dark
KINDS = [
    ("index.html", *WIDE),
    ("index.html", *NARROW),
    ("tasks/stages.html", *WIDE),
    ("tasks/stages.html", *NARROW),
    ("reference/parameters.html", *WIDE),
    ("reference/api.html", *NARROW),
    ("troubleshooting.html", *WIDE),
]


class Page(HTMLParser):
    """What a page refers to, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("script", "img", "iframe", "link"):
            self.loaded += [
                given[name] for name in ("src", "href") if name in given and given.get("rel") != "canonical"
            ]


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def inside(pages: dict[Path, Page], kind: str) -> Iterator[tuple[Path, str]]:
    for path, page in pages.items():
        for address in getattr(page, kind):
            if not urlsplit(address).scheme:
                yield path, address


def test_every_link_leads_to_a_page_and_an_anchor_that_are_there(site, pages):
    broken = []
    for path, address in inside(pages, "links"):
        parts = urlsplit(address)
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.is_file() or (
            parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in pages[target].anchors
        ):
            broken.append(f"{path.relative_to(site)}: {address}")
    assert broken == []
    assert sum(1 for _ in inside(pages, "links")) > 1000


def test_everything_that_a_page_loads_is_beside_it(site, pages):
    elsewhere = {address for page in pages.values() for address in page.loaded if urlsplit(address).scheme}
    assert elsewhere == set()
    missing = [
        f"{path.relative_to(site)}: {address}"
        for path, address in inside(pages, "loaded")
        if not (path.parent / urlsplit(address).path).is_file()
    ]
    assert missing == []


@pytest.mark.parametrize(("kind", "width", "dark"), KINDS)
def test_pages_have_no_error_fit_their_window_and_can_be_read(site, page_at, kind, width, dark):
    opened = page_at(site / kind, width=width, dark=dark)
    assert (opened.errors, opened.failed, opened.outside) == ([], [], [])
    assert opened.overflow() <= 0
    assert opened.violations() == []


def test_the_navigation_can_be_read_in_the_dark(site, page_at):
    assert page_at(site / "index.html", dark=True).violations() == []


def test_search_finds_a_parameter_without_a_server(site, page_at):
    opened = page_at(site / "index.html")
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("split_along_outer_axis")
    first = opened.page.locator(".md-search-result__item a").first
    first.wait_for(timeout=20_000)
    assert "split_along_outer_axis" in first.inner_text()
    opened.page.keyboard.press("ArrowDown")
    first.click()
    opened.page.wait_for_url("**/*.html*h=*")
    assert "split_along_outer_axis" in opened.page.locator("article").inner_text()
    assert (opened.errors, opened.failed, opened.outside) == ([], [], [])


def test_the_keyboard_reaches_the_content(site, page_at):
    opened = page_at(site / "tasks/tensorflow.html")
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.classList.contains('md-skip')")
    opened.page.keyboard.press("Enter")
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.querySelector('article').contains(document.activeElement)")
