"""Where a request's time goes: bars of 100 %, so that loads of 2 ms and of 2 s are read alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from unified_backend.measuring.result import PointResult
from unified_backend.reports.drawing import Drawing, drawn
from unified_backend.reports.palette import sentinel
from unified_backend.reports.rows import Row, bar, rows
from unified_backend.reports.scales import measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PARTS", "grouped", "shares", "style_of", "waterfall"]

# What is drawn -> the parts of perf_analyzer in it, and what it means.
PARTS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "client": (("client send", "client receive"), "the load generator's own"),
    "network": (("network",), "between the client and the server, and what a backend that overlaps batches waits"),
    "queue": (("queue",), "waiting for a free instance, or for a batch to fill"),
    "input": (("input",), "gathering the inputs of a batch"),
    "pre": (("preprocess",), "the stages before the engine"),
    "infer": (("infer",), "in the engine; of a model without stages, in the backend"),
    "post": (("postprocess",), "the stages after the engine"),
    "output": (("output",), "sending the answers"),
}


def grouped(parts: Mapping[str, float | None]) -> dict[str, float]:
    """Milliseconds of each of `PARTS`."""
    return {name: sum(parts.get(one) or 0.0 for one in names) for name, (names, _) in PARTS.items()}


def style_of(part: str) -> dict[str, object]:
    """Of the bars of one part."""
    return {"facecolor": sentinel(part), "edgecolor": sentinel("paper"), "linewidth": 0.8}


def shares(points: Sequence[PointResult], key: str) -> Drawing | None:
    """One bar a load of one variant; None if no point tells its parts."""
    told = [(point, grouped(point.parts)) for point in points if sum(grouped(point.parts).values()) > 0]
    if not told:
        return None
    entries = [
        Row(
            f"batch {point.batch}, concurrency {point.concurrency}",
            f"{measured(sum(parts.values()))} ms",
            _bar(parts, 0.0, sum(parts.values()), f"-{number}"),
        )
        for number, (point, parts) in enumerate(told)
    ]
    longest = [
        f"at batch {point.batch} and concurrency {point.concurrency} most is {_most(parts)}"
        for point, parts in (told[0], told[-1])[: len(told)]
    ]
    return _finished(entries, key, f"Parts of a request's time; {'; '.join(longest)}. The table below has all values.")


def waterfall(points: Sequence[PointResult], key: str) -> Drawing | None:
    """The steps of a pipeline below one another, each begun where the one before ends; None if no point has steps."""
    entries = []
    for number, point in enumerate(points):
        steps = [(step.model, grouped(step.parts)) for step in point.steps]
        total = sum(sum(parts.values()) for _, parts in steps)
        starts = accumulate((sum(parts.values()) for _, parts in steps), initial=0.0)
        for place, ((model, parts), start) in enumerate(zip(steps, starts, strict=False)):
            if total > 0:
                head = f"batch {point.batch}, concurrency {point.concurrency}" if place == 0 else ""
                value = f"{measured(sum(parts.values()))} ms"
                entries.append(Row(model, value, _bar(parts, start, total, f"-{number}-{place}"), head))
    if not entries:
        return None
    return _finished(entries, key, "Parts of the time in each step of the pipeline. The table below has all values.")


def _finished(entries: Sequence[Row], key: str, says: str) -> Drawing:
    figure, axes = rows(entries, "share of the time, %")
    axes.set_xlim(0, 100)
    axes.set_xticks(range(0, 101, 25))
    return drawn(figure, key, says)


def _bar(parts: Mapping[str, float], start: float, total: float, suffix: str) -> Callable[[Axes, float], None]:
    return partial(_draw, parts=parts, start=start, total=total, suffix=suffix)


def _draw(axes: Axes, middle: float, parts: Mapping[str, float], start: float, total: float, suffix: str) -> None:
    left = 100 * start / total
    for name, value in parts.items():
        width = 100 * value / total
        if width > 0:
            bar(axes, middle, left, width, f"part-{name}{suffix}", **style_of(name))
        left += width


def _most(parts: Mapping[str, float]) -> str:
    name = max(parts, key=lambda one: parts[one])
    return f"{name}, {100 * parts[name] / sum(parts.values()):.0f} %"
