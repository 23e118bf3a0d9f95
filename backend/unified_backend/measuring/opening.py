"""A variant brought to where it can be measured: served, given inputs that it answers, and its latencies foreseen."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from unified_backend.errors import Refused, UnifiedError
from unified_backend.measuring.inputs import Inputs
from unified_backend.measuring.perf_analyzer import LASTS, STARTUP_SECONDS, enough_seconds
from unified_backend.measuring.result import ServedVariant
from unified_backend.measuring.served import Point, Served, running, served
from unified_backend.measuring.serving import NotLoadedError
from unified_backend.measuring.subjects import Subject
from unified_backend.measuring.variants import Variant

__all__ = ["Candidate", "Plan", "Ready", "Skip", "opened"]

Skip = Callable[[str, str], None]

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


@dataclass(frozen=True)
class Ready:
    """A variant that answers.

    Attributes:
        found: what its load found.
        latencies: that were foreseen at each point, in seconds.
        overhead: of one measurement, beside its windows.
        load_seconds: that it took to get here.
    """

    found: ServedVariant
    served: Served
    inputs: Inputs
    latencies: dict[Point, float]
    overhead: float
    load_seconds: float

    @property
    def id(self) -> str:
        """What points call it."""
        return self.found.id

    def seconds(self, point: Point, plan: Plan) -> float:
        """How long a point is measured, in every round: what takes another while in each is hard to compare."""
        return max(plan.seconds, enough_seconds(self.latencies[point]))

    def cost(self, point: Point, plan: Plan) -> float:
        """Seconds that it takes to measure a point once."""
        return LASTS * self.seconds(point, plan) + self.overhead + self.latencies[point]


def opened(stack: ExitStack, candidate: Candidate, plan: Plan, folder: Path, tool: Path, skip: Skip) -> Ready | None:
    """A variant that was loaded and has answered; None if it cannot be served.

    Args:
        stack: whose end stops its server.
        folder: for its repository and log, in a folder of their own.
        tool: perf_analyzer.
        skip: is told what cannot be measured, and why.

    Raises:
        Refused: the one thing that is measured does not take the data.
    """
    began = time.monotonic()
    if candidate.subject and candidate.subject.problem:
        skip(candidate.id, candidate.subject.problem)
        return None
    with ExitStack() as own:
        try:
            one, notes = _entered(own, candidate, plan, folder)
            inputs = one.inputs(plan.data, plan.shapes)
            sizes = [size for size in plan.batches if size <= max(1, one.max_batch_size)]
            for size in plan.batches:
                if size not in sizes:
                    skip(f"{candidate.id} batch {size}", _no_batch(one))
            points = [point for point in plan.points if point.batch in sizes]
            latencies = dict(_foreseen(one, inputs, points, plan, skip, candidate.id))
            overhead = _overhead(one, inputs, latencies, tool)
            found = one.facts(candidate.id, notes)
        except NotLoadedError as error:
            skip(candidate.id, "; ".join(map(_plain, error.reasons.values())))
            return None
        except UnifiedError as error:
            if isinstance(error, Refused) and not (candidate.subject and candidate.subject.form):
                raise
            skip(candidate.id, f"{error.what}: {error.why}")
            return None
        stack.push(own.pop_all())
    return Ready(found, one, inputs, latencies, overhead, time.monotonic() - began)


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
    one: Served, inputs: Inputs, points: Sequence[Point], plan: Plan, skip: Skip, ident: str
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
