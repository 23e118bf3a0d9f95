"""Variants measured in turns: loaded, asked once, estimated, and then round after round at every point.

    done = run(candidates, plan, folder, find_perf_analyzer(), Watch())
    done.points, done.skipped

The variants are served side by side, each by a server of its own, and one is measured at a time: a ratio of two is of
readings taken seconds apart. Where memory is short they are served in groups.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from unified_backend.errors import MeasurementError
from unified_backend.measuring.counts import Counts
from unified_backend.measuring.opening import Candidate, Plan, Ready, Skip, opened
from unified_backend.measuring.perf_analyzer import Reading
from unified_backend.measuring.result import PointResult, ServedVariant, Skipped
from unified_backend.measuring.served import Point

__all__ = ["Measured", "Watch", "run"]

_AT_ONCE = 8  # servers
_FREE_MEMORY = 0.3  # of the machine's, for another server to be started beside those that run
_STOP_SECONDS = 3.0  # of a server, measured on a busy machine


class Watch:
    """Who is told what happens; this one says nothing."""

    def loading(self, candidate: Candidate, number: int, total: int) -> None:
        """A server is being started, and its models loaded."""

    def loaded(self, variant: ServedVariant, inputs: str) -> None:
        """It answers."""

    def skipped(self, one: Skipped) -> None:
        """Something cannot be measured."""

    def estimated(self, seconds: float, guessed: int) -> None:
        """What the rest takes, `guessed` variants of it by the likeness of the others."""

    def measuring(self, what: str, round_: int, done: float, total: float) -> None:
        """A point is being measured: `done` of `total` seconds of the estimate are behind."""

    def measured(self, what: str, reading: Reading, done: float, total: float) -> None:
        """It was, and `done` of `total` seconds are behind."""


@dataclass
class Measured:
    """All that was measured so far: it grows, and is whole at any time.

    Attributes:
        estimate_seconds: what the whole was said to take when its first variants were loaded.
    """

    variants: list[ServedVariant] = field(default_factory=list)
    readings: dict[tuple[str, Point], list[tuple[Reading, Counts]]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    triton: str = ""
    estimate_seconds: float | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def add(self, one: Ready) -> None:
        """A variant that answers."""
        self.triton = self.triton or one.served.client.version()
        self.inputs[one.served.name] = one.inputs.words
        self.variants.append(one.found)

    @property
    def points(self) -> list[PointResult]:
        """Those that have a reading."""
        return [_point_result(ident, point, rows) for (ident, point), rows in self.readings.items()]


def run(
    candidates: Sequence[Candidate],
    plan: Plan,
    folder: Path,
    tool: Path,
    watch: Watch,
    into: Measured | None = None,
) -> Measured:
    """Measure every candidate at every point; what cannot be is skipped with its reason, and stops nothing else.

    Args:
        folder: for repositories and logs; its parent directories need no special name.
        tool: perf_analyzer.
        into: what grows meanwhile: for who is interrupted.
    """
    done = into if into is not None else Measured()

    def skip(what: str, why: str) -> None:
        done.skipped.append(Skipped(what, why))
        watch.skipped(done.skipped[-1])

    waiting = list(candidates)
    while waiting:
        with ExitStack() as stack:
            ready: list[Ready] = []
            while waiting and _room_beside(len(ready)):
                watch.loading(waiting[0], len(candidates) - len(waiting) + 1, len(candidates))
                if one := opened(stack, waiting.pop(0), plan, folder, tool, skip):
                    done.add(one)
                    watch.loaded(one.found, one.inputs.words)
                    ready.append(one)
            if ready:
                _measure(ready, len(waiting), plan, tool, watch, done, skip)
            for one in ready:  # so that they end at the same time
                if one.served.server:
                    one.served.server.signal(signal.SIGTERM)
    return done


def _room_beside(count: int) -> bool:
    if not count:
        return True
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return count < _AT_ONCE and sizes["MemAvailable"] > _FREE_MEMORY * sizes["MemTotal"]


def _measure(
    ready: Sequence[Ready], waiting: int, plan: Plan, tool: Path, watch: Watch, done: Measured, skip: Skip
) -> None:
    """Every round of these variants, a point after the other, the variants in turn at each."""
    total = plan.rounds * sum(one.cost(point, plan) for one in ready for point in one.latencies) + _STOP_SECONDS
    others = waiting * (total / len(ready) + sum(one.load_seconds for one in ready) / len(ready))
    watch.estimated(total + others, waiting)
    if done.estimate_seconds is None:
        done.estimate_seconds = done.seconds + total + others
    behind, failed = 0.0, set[tuple[str, Point]]()
    for turn in range(plan.rounds):
        for point in plan.points:
            first = turn % len(ready)  # none always runs behind the same neighbour
            for one in (*ready[first:], *ready[:first]):
                if point not in one.latencies or (one.id, point) in failed:
                    continue
                what = f"{one.id} batch {point.batch} concurrency {point.concurrency}"
                watch.measuring(what, turn + 1, behind, total + others)
                cost = one.cost(point, plan)
                try:
                    reading, counts = one.served.measure(tool, point, one.inputs, one.seconds(point, plan))
                except MeasurementError as error:
                    failed.add((one.id, point))
                    skip(what, f"{error.what}: {error.why.strip().splitlines()[-1]}")
                    continue
                finally:
                    behind += cost
                done.readings.setdefault((one.id, point), []).append((reading, counts))
                watch.measured(what, reading, behind, total + others)


def _point_result(ident: str, point: Point, rows: Sequence[tuple[Reading, Counts]]) -> PointResult:
    readings = [reading for reading, _ in rows]
    counts = [count for _, count in rows]
    busy = [
        min(1.0, reading.throughput / point.batch * count.busy_seconds / count.requests)
        for reading, count in rows
        if count.busy_seconds is not None and count.requests
    ]
    sizes = [count.mean_batch for count in counts if count.mean_batch is not None]
    return PointResult(
        ident,
        point.batch,
        point.concurrency,
        readings,
        counts[-1].steps,
        sum(busy) / len(busy) if busy else None,
        sum(sizes) / len(sizes) if sizes else None,
    )
