"""Colours, markers and dashes: apart for every kind of eye, on light and dark paper, and without any colour at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unified_backend.reports.result import Variant

__all__ = ["DARK", "LIGHT", "PATTERNS", "Look", "looks", "sentinel", "with_variables"]

# Six hues after Okabe and Ito, shifted until each has 3:1 to its paper (WCAG 1.4.11) and text has 4.5:1.
LIGHT = {
    "paper": "#ffffff",
    "raised": "#f5f6f7",
    "ink": "#1b1f23",
    "soft": "#555d66",
    "grid": "#d9dde1",
    "link": "#0b5cad",
    "good": "#0b6e4f",
    "bad": "#b3261e",
    "series-1": "#0072b2",
    "series-2": "#d55e00",
    "series-3": "#00906a",
    "series-4": "#b4578f",
    "series-5": "#8a7a00",
    "series-6": "#3f464d",
}
DARK = {
    "paper": "#14171a",
    "raised": "#1e2327",
    "ink": "#e8eaec",
    "soft": "#a9b1b9",
    "grid": "#353c43",
    "link": "#7fbdf2",
    "good": "#5fd0a5",
    "bad": "#ff8f85",
    "series-1": "#56b4e9",
    "series-2": "#ef8a3c",
    "series-3": "#21b78c",
    "series-4": "#e29bc6",
    "series-5": "#e2d34a",
    "series-6": "#c9d0d6",
}
# What fills the parts of a request's time, in their order: a hue each, and lines on every other one, so that neighbours
# differ without any hue. Each with the path that is drawn over a tile of 6 by 6 pixels.
PATTERNS = {
    "client": ("series-6", ""),
    "network": ("series-5", "M3 0V6"),
    "queue": ("series-2", ""),
    "input": ("series-3", "M-1 1L1 -1M0 6L6 0M5 7L7 5"),
    "infer": ("series-1", ""),
    "output": ("series-4", "M-1 5L1 7M0 0L6 6M5 -1L7 1"),
}
_SERIES = tuple(role for role in LIGHT if role.startswith("series-"))
_MARKERS = "osD^vPX<>ph*"
_DASHES: Sequence[str | tuple[float, tuple[float, ...]]] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))


@dataclass(frozen=True)
class Look:
    """How one variant is drawn everywhere."""

    colour: str
    marker: str
    dashes: str | tuple[float, tuple[float, ...]]


def looks(variants: Sequence[Variant]) -> dict[str, Look]:
    """id -> look: one hue an engine, one dash a precision, and a marker of its own for each of twelve."""
    engines = list(dict.fromkeys(variant.engine for variant in variants))
    precisions = list(dict.fromkeys(variant.precision for variant in variants))
    spread_hues = len(engines) == 1  # then hues are free to tell variants apart
    return {
        variant.id: Look(
            sentinel(_SERIES[(number if spread_hues else engines.index(variant.engine)) % len(_SERIES)]),
            _MARKERS[number % len(_MARKERS)],
            _DASHES[precisions.index(variant.precision) % len(_DASHES)],
        )
        for number, variant in enumerate(variants)
    }


def sentinel(role: str) -> str:
    """The colour that stands for a role, or for the filling of a part, while it is drawn."""
    return f"#fe01{[*LIGHT, *PATTERNS].index(role):02x}"


def with_variables(svg: str) -> str:
    """The drawing with the page's variables in place of colours: it follows the reader's light or dark."""
    for role in LIGHT:
        svg = svg.replace(sentinel(role), f"var(--{role})")
    for part in PATTERNS:
        svg = svg.replace(sentinel(part), f"url(#fill-{part})")
    return svg
