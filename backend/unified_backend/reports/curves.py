"""Latency over throughput: one curve a variant, along which the concurrency rises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_backend.measuring.result import PointResult, Spread
from unified_backend.reports.drawing import SIZE, Drawing, blank, drawn, panel, text_width
from unified_backend.reports.palette import Look, sentinel
from unified_backend.reports.scales import leave_room, measured, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LABELLED", "curves"]

Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels

LABELLED = 4  # curves whose points can all be numbered before they hide one another
_HEIGHT = 270.0
_NAMES = {"p50": "median latency (p50), ms", "p99": "tail latency (p99), ms"}


def curves(points: Sequence[PointResult], looks: Mapping[str, Look], percentile: str, key: str) -> Drawing | None:
    """
    Args:
        points: of one batch size.
        percentile: p50 or p99; None is drawn if no point has it.
    """
    timed = [(point, found) for point in points if (found := point.latency(percentile)) is not None]
    if not timed:
        return None
    figure = blank(_HEIGHT)
    axes = panel(figure, 0, 10, 12, 42)
    scale(axes, "x", [bound for point, _ in timed for bound in _bounds(point.throughput)], 6)
    # The same for both percentiles, which stand side by side.
    latencies = [found for point in points for name in _NAMES if (found := point.latency(name)) is not None]
    scale(axes, "y", [bound for latency in latencies for bound in _bounds(latency)], 7)
    axes.set_xlabel("throughput, inferences a second")
    axes.set_ylabel(_NAMES[percentile])
    leave_room(axes)
    names = [name for name in looks if any(point.variant == name for point, _ in timed)]
    numbers = {name: number for number, name in enumerate(looks)}
    lines = [[(point, latency) for point, latency in timed if point.variant == name] for name in names]
    for name, own in zip(names, lines, strict=True):
        _curve(axes, own, looks[name], numbers[name])
    if len(names) <= LABELLED:
        _number(axes, lines)
    best = max(timed, key=lambda one: one[0].throughput.median)
    quick = min(timed, key=lambda one: one[1].median)
    kinds = f"{len(names)} curves" if names[1:] else "one curve"
    return drawn(
        figure,
        key,
        f"{_NAMES[percentile]}, over throughput at batch {best[0].batch}: {kinds}. The most throughput is "
        f"{_told(*best)}; the shortest latency is {_told(*quick)}. The table below has all values.",
    )


def _told(point: PointResult, latency: Spread) -> str:
    said = f"{measured(latency.median)} ms at {measured(point.throughput.median)} inferences a second"
    return f"{said} ({point.variant}, concurrency {point.concurrency})"


def _bounds(spread: Spread) -> tuple[float, float]:
    return (spread.low or spread.median, spread.high)


def _curve(axes: Axes, own: Sequence[tuple[PointResult, Spread]], look: Look, number: int) -> None:
    x = [point.throughput.median for point, _ in own]
    y = [latency.median for _, latency in own]
    axes.plot(x, y, color=look.colour, linestyle=look.dashes, gid=f"line-{number}")
    low, high = zip(*(_bounds(point.throughput) for point, _ in own), strict=True)
    axes.hlines(y, low, high, color=look.colour, linewidth=1, gid=f"x-spread-{number}")
    low, high = zip(*(_bounds(latency) for _, latency in own), strict=True)
    axes.vlines(x, low, high, color=look.colour, linewidth=1, gid=f"y-spread-{number}")
    style: dict[str, Any] = {
        "color": look.colour,
        "marker": look.marker,
        "linestyle": "none",
        "clip_on": False,
        "zorder": 3,
    }
    axes.plot(x[:1], y[:1], markerfacecolor=sentinel("paper"), gid=f"first-mark-{number}", **style)
    axes.plot(x[1:], y[1:], gid=f"marks-{number}", **style)


def _number(axes: Axes, curves: Sequence[Sequence[tuple[PointResult, Spread]]]) -> None:
    """Write each point's concurrency beside it where there is room: over no mark or number, and no line if possible."""
    spots = [
        [axes.transData.transform((point.throughput.median, latency.median)) for point, latency in own]
        for own in curves
    ]
    taken = [_around(x, y, 5) for own in spots for x, y in own]
    lines = [_around(x, y, 1) for own in spots for start, end in pairwise(own) for x, y in np.linspace(start, end, 40)]
    inside = axes.get_window_extent()
    for (point, _), (x, y) in zip(chain(*curves), chain(*spots), strict=True):
        text = str(point.concurrency)
        boxes = [box for box in _beside(x, y, text_width(text)) if not _hits(box, taken)]
        boxes = [box for box in boxes if inside.x0 <= box[0] and box[2] <= inside.x1 + 8 and inside.y0 <= box[1]]
        box = next((box for box in boxes if not _hits(box, lines)), boxes[0] if boxes else None)
        if box:
            taken.append(box)
            at = axes.transData.inverted().transform((box[0] + 1, box[1] + 2))
            axes.text(at[0], at[1], text, color=sentinel("soft"))


def _beside(x: float, y: float, width: float) -> Iterator[Box]:
    """Where a number may stand: at the corners of a mark first, then beside, above and below it."""
    for right, up in ((-1, 1), (1, -1), (1, 1), (-1, -1), (-1, 0), (1, 0), (0, 1), (0, -1)):
        left = x + 6 if right > 0 else x - 8 - width if right < 0 else x - 1 - width / 2
        bottom = y + 4 if up > 0 else y - 4 - SIZE if up < 0 else y - SIZE / 2
        yield (left, bottom, left + width + 2, bottom + SIZE)


def _around(x: float, y: float, room: float) -> Box:
    return (x - room, y - room, x + room, y + room)


def _hits(box: Box, others: Sequence[Box]) -> bool:
    return any(box[0] < one[2] and one[0] < box[2] and box[1] < one[3] and one[1] < box[3] for one in others)
