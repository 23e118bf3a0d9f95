"""The last word: the config as it is, and the best that was found, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unified_backend.measuring.perf_analyzer import Reading
from unified_backend.measuring.result import Spread, spread
from unified_backend.tuning.search import Goal
from unified_backend.tuning.space import Point

__all__ = ["LEAST_ROUNDS", "Compared", "Decision", "decide"]

LEAST_ROUNDS = 3  # that a spread can be taken of


@dataclass(frozen=True)
class Compared:
    """A point, measured round after round in turns with others.

    Attributes:
        concurrency: requests in flight.
        readings: one a round.
    """

    point: Point
    concurrency: int
    readings: Sequence[Reading]

    def spread(self, name: str) -> Spread:
        """Of `throughput`, `p50` or `p99` over the rounds."""
        return spread([getattr(reading, name) for reading in self.readings])


@dataclass(frozen=True)
class Decision:
    """What to serve with.

    Attributes:
        winner: None where the config as it is stays.
        ratio: of the best that was compared, to the config as it is; None where nothing was compared with it.
        why: in words.
    """

    winner: Compared | None
    ratio: float | None
    why: str


def decide(default: Compared, best: Compared, goal: Goal) -> Decision:
    """Whether the best that was found is better than the config as it is, by more than the noise of the rounds.

    Beyond the noise is what lies outside: the worse quartile of the one is better than the better quartile of the
    other. Who keeps the latency budget is better than who does not.
    """
    rounds = len(default.readings)
    ratio = _gain(best, default, goal)
    if rounds < LEAST_ROUNDS:
        return Decision(None, ratio, f"the budget left no time for the {LEAST_ROUNDS} rounds that show the noise")
    if goal.p99 is not None and (late := best.spread("p99").median) > goal.p99:
        return Decision(None, ratio, f"side by side its p99 was {late:.3g} ms")
    if goal.p99 is not None and default.spread("p99").median > goal.p99:
        return Decision(best, ratio, "the config as it is does not keep the latency budget")
    if _beyond(best, default, goal):
        return Decision(best, ratio, f"beyond the noise of {rounds} rounds")
    return Decision(None, ratio, f"within the noise of {rounds} rounds" if ratio > 1 else f"in {rounds} rounds")


def _gain(one: Compared, other: Compared, goal: Goal) -> float:
    if goal.kind == "latency":
        return other.spread("p50").median / one.spread("p50").median
    return one.spread("throughput").median / other.spread("throughput").median


def _beyond(one: Compared, other: Compared, goal: Goal) -> bool:
    if goal.kind == "latency":
        return one.spread("p50").high < other.spread("p50").low
    return one.spread("throughput").low > other.spread("throughput").high
