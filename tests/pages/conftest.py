"""Pages in a real headless Chromium: what each one says on its console, and what it asked for in vain."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opened import Opened
from playwright.sync_api import Browser, Request, Response, Route, sync_playwright

_CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all pages: that of the variable CHROMIUM, else the first one on PATH."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _CHROMIUMS)), None)
    if path is None:
        pytest.fail(f"no Chromium: none of {', '.join(_CHROMIUMS)} is on PATH; install one, or set CHROMIUM")
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses to work for root.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield started
        started.close()


@pytest.fixture
def page_at(browser: Browser) -> Iterator[Callable[..., Opened]]:
    """`page_at(path_or_url, width=1440, dark=False)` opens a file or an address of this machine for one test."""
    contexts = []

    def open_page(where: str | Path, width: int = 1440, dark: bool = False) -> Opened:
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        opened = Opened(context.new_page())

        def keep_inside(route: Route) -> None:
            if route.request.url.startswith(("file:", "http://127.0.0.1", "data:", "blob:")):
                route.continue_()
            else:
                opened.outside.append(route.request.url)
                route.abort()

        def note_failure(request: Request) -> None:
            opened.failed.append(f"{request.url}: {request.failure}")

        def note_status(response: Response) -> None:
            if response.status >= 400:
                opened.failed.append(f"{response.url}: {response.status}")

        context.route("**/*", keep_inside)
        page = opened.page
        page.on("console", lambda said: opened.errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: opened.errors.append(str(error)))
        page.on("requestfailed", note_failure)
        page.on("response", note_status)
        page.goto(where if "://" in str(where) else Path(where).absolute().as_uri(), wait_until="load")
        return opened

    yield open_page
    for context in contexts:
        context.close()
