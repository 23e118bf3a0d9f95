"""Colours, markers and dashes: apart for every kind of eye, on light and dark paper, and without any colour at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from unified_backend.measuring.result import ServedVariant

__all__ = ["DARK", "LIGHT", "PATTERNS", "Look", "looks", "sentinel", "with_variables"]

# Blue, red, green, purple, amber and grey, moved until each two are as far apart as can be for eyes without one kind of
# cones too (33 in CIELAB, of which Okabe and Ito's on white have 3), with 3:1 to their paper (WCAG 1.4.11).
LIGHT = {
    "paper": "#ffffff",
    "raised": "#f5f6f7",
    "ink": "#1b1f23",
    "soft": "#555d66",
    "grid": "#d9dde1",
    "link": "#0b5cad",
    "good": "#0b6e4f",
    "bad": "#b3261e",
    "series-1": "#0443b7",
    "series-2": "#861400",
    "series-3": "#37a36d",
    "series-4": "#894780",
    "series-5": "#d38000",
    "series-6": "#1b1f22",
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
    "series-1": "#06b9ff",
    "series-2": "#d55806",
    "series-3": "#07734d",
    "series-4": "#a84098",
    "series-5": "#ffc800",
    "series-6": "#b6bfc6",
}
# What fills the parts of a request's time, in their order: a hue each, and lines on every other one, so that neighbours
# differ without any hue. Each with the path that is drawn over a tile of 6 by 6 pixels.
PATTERNS = {
    "client": ("series-6", ""),
    "network": ("series-5", "M3 0V6"),
    "queue": ("series-2", ""),
    "input": ("series-3", "M-1 1L1 -1M0 6L6 0M5 7L7 5"),
    "pre": ("series-2", "M0 3H6"),
    "infer": ("series-1", ""),
    "post": ("series-6", "M0 3H6"),
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


def looks(variants: Sequence[ServedVariant]) -> dict[str, Look]:
    """id -> look: one hue an engine, one dash a precision (or number of instances), and a marker for each of twelve."""
    engines = list(dict.fromkeys(variant.engine for variant in variants))
    kinds: list[str | int] = [variant.precision for variant in variants]
    if len(set(kinds)) == 1:
        kinds = [variant.instances for variant in variants]
    dashes = dict(zip(dict.fromkeys(kinds), cycle(_DASHES), strict=False))
    spread_hues = len(engines) == 1  # then hues are free to tell variants apart
    return {
        variant.id: Look(
            sentinel(_SERIES[(number if spread_hues else engines.index(variant.engine)) % len(_SERIES)]),
            _MARKERS[number % len(_MARKERS)],
            dashes[kind],
        )
        for number, (variant, kind) in enumerate(zip(variants, kinds, strict=True))
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
