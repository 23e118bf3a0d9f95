"""Latency over throughput: one curve a variant, along which the concurrency rises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unified_backend.reports.drawing import SIZE, Drawing, blank, drawn, panel, text_width
from unified_backend.reports.palette import Look, sentinel
from unified_backend.reports.result import Point, Spread
from unified_backend.reports.scales import leave_room, measured, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LABELLED", "curves"]

LABELLED = 4  # curves whose points can all be numbered before they hide one another
_HEIGHT = 270.0
_NAMES = {"p50": "median latency (p50), ms", "p99": "tail latency (p99), ms"}


def curves(points: Sequence[Point], looks: Mapping[str, Look], percentile: str, key: str) -> Drawing | None:
    """
    Args:
        points: of one batch size.
        percentile: p50 or p99; None is drawn if no point has it.
    """
    timed = [(point, found) for point in points if (found := _latency(point, percentile)) is not None]
    if not timed:
        return None
    figure = blank(_HEIGHT)
    axes = panel(figure, 0, 10, 12, 42)
    scale(axes, "x", [bound for point, _ in timed for bound in _bounds(point.throughput)], 6)
    # The same for both percentiles, which stand side by side.
    latencies = [latency for point in points for latency in (point.p50, point.p99) if latency is not None]
    scale(axes, "y", [bound for latency in latencies for bound in _bounds(latency)], 7)
    axes.set_xlabel("throughput, inferences a second")
    axes.set_ylabel(_NAMES[percentile])
    leave_room(axes)
    names = [name for name in looks if any(point.variant == name for point, _ in timed)]
    numbers = {name: number for number, name in enumerate(looks)}
    for name in names:
        own = [(point, latency) for point, latency in timed if point.variant == name]
        _curve(axes, own, looks[name], numbers[name])
    if len(names) <= LABELLED:
        _number(axes, timed)
    best = max(timed, key=lambda one: one[0].throughput.median)
    quick = min(timed, key=lambda one: one[1].median)
    kinds = f"{len(names)} curves" if names[1:] else "one curve"
    return drawn(
        figure,
        key,
        f"{_NAMES[percentile]}, over throughput at batch {best[0].batch}: {kinds}. The most throughput is "
        f"{_told(*best)}; the shortest latency is {_told(*quick)}. The table below has all values.",
    )


def _told(point: Point, latency: Spread) -> str:
    said = f"{measured(latency.median)} ms at {measured(point.throughput.median)} inferences a second"
    return f"{said} ({point.variant}, concurrency {point.concurrency})"


def _latency(point: Point, percentile: str) -> Spread | None:
    return point.p50 if percentile == "p50" else point.p99


def _bounds(spread: Spread) -> tuple[float, float]:
    return (spread.low or spread.median, spread.high)


def _curve(axes: Axes, own: Sequence[tuple[Point, Spread]], look: Look, number: int) -> None:
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


def _number(axes: Axes, timed: Sequence[tuple[Point, Spread]]) -> None:
    """Write each point's concurrency beside it, where there is room; none hides a marker or another number."""
    spots = [axes.transData.transform((point.throughput.median, latency.median)) for point, latency in timed]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    inside = axes.get_window_extent()
    for (point, _), (x, y) in zip(timed, spots, strict=True):
        text = str(point.concurrency)
        width, height = text_width(text) + 2, SIZE
        for right, up in ((-1, 1), (1, -1), (1, 1), (-1, -1), (0, 1), (0, -1)):
            left = x + 6 if right > 0 else x - 6 - width if right < 0 else x - width / 2
            bottom = y + 4 if up > 0 else y - 4 - height
            box = (left, bottom, left + width, bottom + height)
            if not any(_overlap(box, other) for other in taken) and (
                inside.x0 <= box[0] and box[2] <= inside.x1 + 8 and inside.y0 <= box[1] and box[3] <= inside.y1 + 8
            ):
                taken.append(box)
                x, y = axes.transData.inverted().transform((left + 1, bottom + 2))
                axes.text(x, y, text, color=sentinel("soft"))
                break


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
