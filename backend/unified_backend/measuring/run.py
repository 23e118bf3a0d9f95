"""Variants measured in turns: loaded, asked once, estimated, and then round after round at every point.

    done = run(candidates, plan, folder, find_perf_analyzer(), Watch())
    done.points, done.skipped

The variants are served side by side, each by a server of its own, and one is measured at a time: a ratio of two is of
readings taken seconds apart. Where memory is short they are served in groups.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from unified_backend.errors import MeasurementError, Refused, UnifiedError
from unified_backend.measuring.counts import Counts
from unified_backend.measuring.inputs import Inputs
from unified_backend.measuring.perf_analyzer import LASTS, STARTUP_SECONDS, Reading, enough_seconds
from unified_backend.measuring.result import PointResult, ServedVariant, Skipped
from unified_backend.measuring.served import Point, Served, running, served
from unified_backend.measuring.serving import NotLoadedError
from unified_backend.measuring.subjects import Subject
from unified_backend.measuring.variants import Variant

__all__ = ["Candidate", "Measured", "Plan", "Watch", "run"]

_AT_ONCE = 8  # servers
_FREE_MEMORY = 0.3  # of the machine's, for another server to be started beside those that run
_STOP_SECONDS = 3.0  # of a server, measured on a busy machine
_TRIAL_SECONDS = 0.3
_LONGEST_SECONDS = 60.0  # of a request: a window of perf_analyzer would see none end


@dataclass(frozen=True)
class Candidate:
    """A subject served one way; or, without a subject, a model of a server that runs already.

    Attributes:
        name: of the model, where there is no subject.
        url: of that server's endpoint.
    """

    variant: Variant
    subject: Subject | None = None
    name: str = ""
    url: str = ""

    @property
    def id(self) -> str:
        """What points call it."""
        return self.variant.id if self.subject else "as served"


@dataclass(frozen=True)
class Plan:
    """What is measured of each variant.

    Attributes:
        seconds: of one point in one round; slow models get longer.
        data: the user's file or folder of inputs.
        shapes: of inputs with open dimensions, without the batch.
    """

    batches: Sequence[int] = (1,)
    concurrencies: Sequence[int] = (1, 4)
    seconds: float = 3.0
    rounds: int = 3
    protocol: str = "grpc"
    data: Path | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def points(self) -> list[Point]:
        """Every combination."""
        return [Point(batch, concurrency) for batch in self.batches for concurrency in self.concurrencies]


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

    def measured(self, what: str, reading: Reading) -> None:
        """It was."""


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

    @property
    def points(self) -> list[PointResult]:
        """Those that have a reading."""
        return [_point_result(ident, point, rows, self.variants) for (ident, point), rows in self.readings.items()]


@dataclass(frozen=True)
class _Ready:
    """A variant that answers.

    Attributes:
        latencies: that were foreseen at each point, in seconds.
        overhead: of one measurement, beside its windows.
        load_seconds: that it took to get here.
    """

    id: str
    served: Served
    inputs: Inputs
    latencies: dict[Point, float]
    overhead: float
    load_seconds: float


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
    waiting = list(candidates)
    while waiting:
        with ExitStack() as stack:
            ready: list[_Ready] = []
            while waiting and _room_beside(len(ready)):
                watch.loading(waiting[0], len(candidates) - len(waiting) + 1, len(candidates))
                one = _opened(stack, waiting.pop(0), plan, folder, tool, watch, done)
                ready += [one] if one else []
            if ready:
                _measure(ready, len(waiting), plan, tool, watch, done)
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


def _opened(
    stack: ExitStack, candidate: Candidate, plan: Plan, folder: Path, tool: Path, watch: Watch, done: Measured
) -> _Ready | None:
    """A variant that was loaded and has answered; None if it cannot be served, which is noted then."""
    began = time.monotonic()

    def skip(what: str, why: str) -> None:
        done.skipped.append(Skipped(what, why))
        watch.skipped(done.skipped[-1])

    try:
        one, notes = _entered(stack, candidate, plan, folder)
        done.triton = done.triton or one.client.version()
        inputs = one.inputs(plan.data, plan.shapes)
        sizes = [size for size in plan.batches if size <= max(1, one.max_batch_size)]
        for size in plan.batches:
            if size not in sizes:
                skip(f"{candidate.id} batch {size}", _no_batch(one))
        points = [point for point in plan.points if point.batch in sizes]
        latencies = dict(_foreseen(one, inputs, points, plan, skip, candidate.id))
        overhead = _overhead(one, inputs, latencies, tool)
    except Refused as error:
        if candidate.subject is None or not candidate.subject.form:
            raise  # wrong data for the one thing that is measured
        skip(candidate.id, f"{error.what}: {error.why}")
        return None
    except NotLoadedError as error:
        skip(candidate.id, "; ".join(map(_plain, error.reasons.values())))
        return None
    except UnifiedError as error:
        skip(candidate.id, f"{error.what}: {error.why}")
        return None
    done.inputs[one.name] = inputs.words
    done.variants.append(one.facts(candidate.id, notes))
    watch.loaded(done.variants[-1], inputs.words)
    return _Ready(candidate.id, one, inputs, latencies, overhead, time.monotonic() - began)


def _plain(reason: str) -> str:
    """A load's reason without the names of Triton's classes."""
    return reason.removeprefix("Internal: ").removeprefix("TritonModelException: ")


def _no_batch(one: Served) -> str:
    size = one.max_batch_size
    return f"the model's max_batch_size is {size}" if size else "the model takes no batches (max_batch_size 0)"


def _entered(stack: ExitStack, candidate: Candidate, plan: Plan, folder: Path) -> tuple[Served, list[str]]:
    """The variant, served; a pipeline's models that its engine does not take keep their own."""
    variant, subject = candidate.variant, candidate.subject
    place = folder / f"{len(list(folder.iterdir()))}"
    place.mkdir()
    if subject is None:
        return stack.enter_context(running(candidate.name, candidate.url, place, plan.protocol)), []
    notes: list[str] = []
    while True:
        attempt: AbstractContextManager[Served] = served(subject, variant, place, plan.protocol)
        try:
            return stack.enter_context(attempt), notes
        except NotLoadedError as error:
            refused = _members_at_fault(subject, variant, error.reasons)
            if not refused or not (variant.engine or variant.precision):
                raise
            variant = dataclasses.replace(variant, without=(*variant.without, *refused))
            notes += [f"{name} keeps its own engine and precision: {_plain(why)}" for name, why in refused.items()]
            if not _members(subject) - set(variant.without):
                raise
            place = folder / f"{len(list(folder.iterdir()))}"
            place.mkdir()


def _members(subject: Subject) -> set[str]:
    """The models of a pipeline that an engine runs."""
    if subject.kind != "pipeline":
        return set()
    models = [inner for model in subject.models for inner in (model.members or [model])]
    return {model.name for model in models if model.ours and not model.is_stage}


def _members_at_fault(subject: Subject, variant: Variant, reasons: Mapping[str, str]) -> dict[str, str]:
    """Those of a pipeline's models that did not load as the variant has them, and why."""
    found = {}
    for name in _members(subject) - set(variant.without):
        for model, why in reasons.items():
            if model == name or f"{name}/" in why or f" {name}:" in why:
                found[name] = why
    return found


def _foreseen(
    one: Served, inputs: Inputs, points: Sequence[Point], plan: Plan, skip: Callable[[str, str], None], ident: str
) -> Iterator[tuple[Point, float]]:
    """The latency at each point: of requests that were sent, several at once where it decides how long is measured."""
    alone: dict[int, float] = {}
    for point in points:
        if point.batch not in alone:
            one.ask(inputs, point.batch)
            alone[point.batch] = min(one.ask(inputs, point.batch) for _ in range(2))
        latency = alone[point.batch]
        worst = latency * point.concurrency
        if enough_seconds(worst) > plan.seconds and point.concurrency > 1 and worst < _LONGEST_SECONDS:
            latency = one.ask_at_once(inputs, point.batch, point.concurrency)
        elif point.concurrency > 1:
            latency = worst
        if latency > _LONGEST_SECONDS:
            what = f"{ident} batch {point.batch} concurrency {point.concurrency}"
            skip(what, f"a request takes about {latency:.0f} s")
            continue
        yield point, latency


def _overhead(one: Served, inputs: Inputs, latencies: Mapping[Point, float], tool: Path) -> float:
    """Seconds that a measurement takes beside its windows, seen at the quickest point."""
    if not latencies:
        return STARTUP_SECONDS
    point, latency = min(latencies.items(), key=lambda pair: pair[1])
    if enough_seconds(latency) > _TRIAL_SECONDS:
        return STARTUP_SECONDS
    began = time.monotonic()
    one.measure(tool, point, inputs, _TRIAL_SECONDS)
    return time.monotonic() - began - LASTS * _TRIAL_SECONDS


def _seconds(one: _Ready, point: Point, plan: Plan) -> float:
    """How long a point is measured, in every round: what takes another while in each is hard to compare."""
    return max(plan.seconds, enough_seconds(one.latencies[point]))


def _cost(one: _Ready, point: Point, plan: Plan) -> float:
    return LASTS * _seconds(one, point, plan) + one.overhead + one.latencies[point]


def _measure(ready: Sequence[_Ready], waiting: int, plan: Plan, tool: Path, watch: Watch, done: Measured) -> None:
    """Every round of these variants, a point after the other, the variants in turn at each."""
    total = plan.rounds * sum(_cost(one, point, plan) for one in ready for point in one.latencies) + _STOP_SECONDS
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
                cost = _cost(one, point, plan)
                try:
                    reading, counts = one.served.measure(tool, point, one.inputs, _seconds(one, point, plan))
                except MeasurementError as error:
                    failed.add((one.id, point))
                    done.skipped.append(Skipped(what, f"{error.what}: {error.why}"))
                    watch.skipped(done.skipped[-1])
                    continue
                finally:
                    behind += cost
                done.readings.setdefault((one.id, point), []).append((reading, counts))
                watch.measured(what, reading)


def _point_result(
    ident: str, point: Point, rows: Sequence[tuple[Reading, Counts]], variants: Sequence[ServedVariant]
) -> PointResult:
    readings = [reading for reading, _ in rows]
    counts = [count for _, count in rows]
    busy = [
        min(1.0, reading.throughput / point.batch * count.busy_seconds / count.requests)
        for reading, count in rows
        if count.busy_seconds is not None and count.requests
    ]
    sizes = [count.mean_batch for count in counts if count.mean_batch is not None]
    steps = counts[-1].steps if len(counts[-1].steps) > 1 else ()
    return PointResult(
        ident,
        point.batch,
        point.concurrency,
        readings,
        steps,
        sum(busy) / len(busy) if busy else None,
        sum(sizes) / len(sizes) if sizes else None,
    )
