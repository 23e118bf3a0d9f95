"""A page that a browser shows, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

__all__ = ["Opened"]

_WCAG_AA = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}


@dataclass
class Opened:
    """A page, and what went wrong on it so far: each a line of text."""

    page: Page
    errors: list[str] = field(default_factory=list)  # of the console, and uncaught ones
    failed: list[str] = field(default_factory=list)  # requests without an answer, or answered with 400 and more
    outside: list[str] = field(default_factory=list)  # requests for another machine, none of which is let through

    def violations(self) -> list[str]:
        """What axe finds against WCAG 2.1 A and AA, contrast included: one line for each element at fault."""
        found = Axe().run(self.page, options=_WCAG_AA).response["violations"]
        return [
            f"{one['id']}: {' '.join(map(str, node['target']))}: {node['failureSummary']}"
            for one in found
            for node in one["nodes"]
        ]

    def overflow(self) -> int:
        """Pixels that the page is wider than its window: above 0 it scrolls sideways."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
