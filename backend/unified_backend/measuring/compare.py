"""Two results held against each other: what became slower or faster, beyond the noise of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unified_backend.measuring.result import PointResult, Result, Spread

__all__ = ["Compared", "Comparison", "compare"]

Verdict = Literal["faster", "slower", "same", "one round tells no noise"]

_LEAST = 0.03  # of a difference that is worth a word


@dataclass(frozen=True)
class Compared:
    """One point in both results; `ratio` is the throughput now over that before."""

    variant: str
    batch: int
    concurrency: int
    before: Spread
    now: Spread
    ratio: float
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """What differs.

    Attributes:
        differences: of the machines, inputs, versions and options, which may explain the rest.
        only: points that one of the results has alone.
    """

    differences: Sequence[str]
    rows: Sequence[Compared]
    only: Sequence[str]

    @property
    def slower(self) -> list[Compared]:
        """What became slower."""
        return [row for row in self.rows if row.verdict == "slower"]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)

    @property
    def summary(self) -> str:
        """In one line."""
        if not self.rows:
            return "compared: no point is in both results"
        verdicts = [row.verdict for row in self.rows]
        counted = (f"{verdicts.count(kind)} {kind}" for kind in dict.fromkeys(("slower", "faster", "same", *verdicts)))
        alone = f"; in one result only: {', '.join(self.only)}" if self.only else ""
        return f"compared: {len(self.rows)} points: {', '.join(counted)}{alone}"


def compare(old: Result, new: Result) -> Comparison:
    """Match points by variant, batch and concurrency."""
    before, now = ({_place(point): point for point in result.points} for result in (old, new))
    rows = [_compared(before[place], now[place]) for place in now if place in before]
    only = [" ".join(map(str, place)) for place in (*before, *now) if (place in before) != (place in now)]
    return Comparison(list(_differences(old, new)), rows, only)


def _place(point: PointResult) -> tuple[str, str, str]:
    return point.variant, f"batch {point.batch}", f"concurrency {point.concurrency}"


def _compared(before: PointResult, now: PointResult) -> Compared:
    one, other = before.throughput, now.throughput
    ratio = other.median / one.median
    return Compared(now.variant, now.batch, now.concurrency, one, other, ratio, _verdict(before, now, ratio))


def _verdict(before: PointResult, now: PointResult, ratio: float) -> Verdict:
    """Beyond the noise is what no round of one side reaches of the other's."""
    if min(len(before.rounds), len(now.rounds)) < 2:
        return "one round tells no noise"
    old, new = ([reading.throughput for reading in point.rounds] for point in (before, now))
    if max(new) < min(old) and ratio < 1 - _LEAST:
        return "slower"
    if min(new) > max(old) and ratio > 1 + _LEAST:
        return "faster"
    return "same"


def _differences(old: Result, new: Result) -> list[str]:
    found = [
        f"{kind} {name}: {one.get(name, 'none')} before, {other.get(name, 'none')} now"
        for kind, one, other in (
            ("subject", {"name": old.subject.get("name")}, {"name": new.subject.get("name")}),
            ("machine", old.machine, new.machine),
            ("version", old.versions, new.versions),
            ("option", old.options, new.options),
        )
        for name in dict.fromkeys((*one, *other))
        if one.get(name) != other.get(name)
    ]
    return found + ([f"inputs: {old.inputs} before, {new.inputs} now"] if old.inputs != new.inputs else [])
