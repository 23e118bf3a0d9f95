"""The search: from the config as it is, one setting after another is moved for as long as that helps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from unified_backend.measuring.perf_analyzer import Reading
from unified_backend.tuning.space import ALTERNATIVES, Point, Space, axes

__all__ = ["Goal", "Tried", "best_of", "search", "verdict"]

# Two readings of the same thing are so far apart; what is kept is compared again in the end, and more carefully.
_NOISE = 0.05
_HOPELESS = 0.7


@dataclass(frozen=True)
class Tried:
    """A point that was measured, or could not be.

    Attributes:
        concurrency: requests in flight.
        reading: None where it could not be served.
        reason: why not.
        gain: how many times as good it was as the best so far, which was measured again right after it: a machine that
            gets busier meanwhile is not mistaken for a worse setting. None for the first.
        leads: it became the best.
    """

    point: Point
    concurrency: int = 0
    reading: Reading | None = None
    reason: str = ""
    gain: float | None = None
    leads: bool = False


@dataclass(frozen=True)
class Goal:
    """What is sought.

    Attributes:
        kind: `throughput`: most inferences a second; `latency`: the lowest median latency.
        p99: milliseconds that 99 of 100 requests must be answered in; None without such a budget.
    """

    kind: Literal["throughput", "latency"] = "throughput"
    p99: float | None = None

    def met_by(self, reading: Reading) -> bool:
        """Whether the budget is kept."""
        return self.p99 is None or reading.p99 <= self.p99

    def gain(self, one: Reading, other: Reading) -> float:
        """How many times as good one reading is as another, the budget aside."""
        return one.throughput / other.throughput if self.kind == "throughput" else other.p50 / one.p50

    def better(self, one: Tried, other: Tried, noise: float = _NOISE) -> bool:
        """Whether `one` is to be preferred, by more than noise."""
        if one.reading is None or other.reading is None:
            return one.reading is not None
        kept, others = self.met_by(one.reading), self.met_by(other.reading)
        if kept != others:
            return kept
        if not kept:  # nearer to the budget
            return one.reading.p99 < other.reading.p99 * (1 - noise)
        return self.gain(one.reading, other.reading) > 1 + noise


def search(
    start: Point, space: Space, goal: Goal, measure: Callable[[Point, Tried | None], tuple[Tried, Tried | None]]
) -> Iterator[Tried]:
    """Measure points until moving no setting helps; each is yielded as it is measured, `start` first.

    A setting that is a number is moved one way for as long as that helps, and the other way if it did not help at all.
    All settings are gone through again after one has changed, because they depend on each other. Nothing is tried
    twice, and an engine or a precision that is far behind is not tried with other settings. Who has seen enough stops
    asking for more.

    Args:
        measure: a point, and the best so far again.
    """
    first, _ = measure(start, None)
    best = dataclasses.replace(first, leads=True)
    yield best
    seen, hopeless = {start}, set[str]()
    changed = True
    while changed:
        changed = False
        for axis, moves in axes(start):
            origin = best.point
            for direction in moves(origin, space):
                if best.point != origin and axis not in ALTERNATIVES:
                    break
                for point in direction:
                    if point in seen or point.engine in hopeless or point.precision in hopeless:
                        break
                    seen.add(point)
                    tried, again = measure(point, best)
                    best = again or best
                    leads = goal.better(tried, best)
                    tried = dataclasses.replace(tried, gain=_gain(tried, best, goal), leads=leads)
                    yield tried
                    if axis in ALTERNATIVES and _is_hopeless(tried):
                        hopeless.add(getattr(point, axis))
                    if not leads:
                        break
                    best, changed = tried, True


def _gain(one: Tried, other: Tried, goal: Goal) -> float | None:
    return goal.gain(one.reading, other.reading) if one.reading and other.reading else None


def _is_hopeless(tried: Tried) -> bool:
    """Whether an engine or a precision is so far behind that no other setting brings it back."""
    return tried.reading is None if tried.gain is None else tried.gain < _HOPELESS


def best_of(tried: Sequence[Tried], goal: Goal) -> Tried | None:
    """The last that became the best; None if it does not keep the budget, and so nothing does."""
    leads = [row for row in tried if row.leads and row.reading and goal.met_by(row.reading)]
    return leads[-1] if leads else None


def verdict(row: Tried, best: Tried | None, goal: Goal) -> str:
    """Why a row lost, or how it led, in words; "" for a first one that leads no more."""
    if row.reading is None:
        return f"could not be served: {row.reason}"
    if not goal.met_by(row.reading):
        return f"over the budget: p99 {row.reading.p99:.3g} ms"
    if row.gain is None:
        return "best of the search" if row is best else ""
    if goal.kind == "throughput":
        gain, than = row.gain, f"the throughput of the best ({row.reading.throughput / row.gain:.1f}"
    else:
        gain, than = 1 / row.gain, f"the latency of the best ({row.reading.p50 * row.gain:.2f} ms"
    of = f"{gain:.2f} times {than} {'before' if row.leads else 'right after'})"
    return f"best of the search: {of}" if row is best else of
