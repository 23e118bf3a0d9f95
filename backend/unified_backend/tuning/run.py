"""A model tuned: its config as it is is served and loaded, then what the search asks for, then the best side by side.

done = Run()
run(subject, Options(Goal(p99=20.0)), folder, find_perf_analyzer(), print, done)
done.decision, done.rows
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from unified_backend import hosts
from unified_backend.errors import MeasurementError, UnifiedError
from unified_backend.forms.reference import ENGINES
from unified_backend.gpus import gpu_of
from unified_backend.measuring.inputs import Inputs
from unified_backend.measuring.perf_analyzer import STARTUP_SECONDS, enough_seconds
from unified_backend.measuring.served import Point as Load
from unified_backend.measuring.served import Served, served
from unified_backend.measuring.serving import NotLoadedError
from unified_backend.measuring.subjects import Subject
from unified_backend.tuning.comparing import LEAST_ROUNDS, Compared, Decision, decide
from unified_backend.tuning.search import Goal, Tried, best_of, search
from unified_backend.tuning.served_point import loaded, point_of, variant_of
from unified_backend.tuning.space import Point, Space

__all__ = ["Options", "Run", "run", "short"]

_SECONDS = 2.0  # of a reading of a quick model
# Latencies in a window. Short ones miss a share of a slow model's requests, much the same one at every point: enough to
# search, and twice as long to compare.
_SEARCHING, _COMPARING = 8, 16
_HORIZON = 100.0  # milliseconds that a request may wait in a load without a budget
_MOST_ROUNDS = 7
_FINALISTS = 2
_MOST_ON_CPU, _MOST_ON_GPU = 32, 128  # of max_batch_size
_STOP_SECONDS = 3.0  # of a server, measured on a busy machine
_MARGIN = 1.2  # of what the next point costs, to what the last did


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        concurrency: requests in flight; None chooses them.
        engines: to try; None for those that take the model here.
        budget: seconds for all of it.
        data: the user's inputs.
    """

    goal: Goal = dataclasses.field(default_factory=Goal)
    concurrency: int | None = None
    engines: Sequence[str] | None = None
    precisions: Sequence[str] = ()
    budget: float = 180.0
    data: Path | None = None


@dataclass
class Run:
    """All that is known so far: it grows, and can be reported at any time.

    Attributes:
        base: the config as it is.
        passed_over: engine -> why it is not tried.
        stopped: why the search ended before nothing more helped; "" if it did not.
    """

    base: Point | None = None
    inputs: str = ""
    rows: list[Tried] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)
    compared: list[Compared] = field(default_factory=list)
    decision: Decision | None = None
    stopped: str = ""
    began: float = field(default_factory=time.monotonic)


@dataclass
class _Session:
    """What the steps share.

    Attributes:
        load_seconds: that a server with the model took to start, the last time.
    """

    subject: Subject
    options: Options
    folder: Path
    tool: Path
    default: Served
    base: Point
    inputs: Inputs
    load: int
    most: int
    deadline: float
    load_seconds: float

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()


def run(subject: Subject, options: Options, folder: Path, tool: Path, tell: Callable[[str], None], done: Run) -> None:
    """Search within the budget, compare, decide.

    Args:
        folder: an empty one, for repositories and logs.
        tell: takes a line about what happens.
        done: what grows meanwhile: for who is interrupted.

    Raises:
        NotLoadedError: the model does not load as it is.
        MeasurementError: it could not be measured as it is.
        Refused: the inputs do not fit.
    """
    tell(f"loading {subject.name} as it is")
    began = time.monotonic()
    with ExitStack() as stack:
        default = stack.enter_context(served(subject, variant_of(Point(), Point(), {}), _place(folder)))
        load_seconds = time.monotonic() - began
        done.base = base = point_of(default, subject.config)
        inputs = default.inputs(options.data, {})
        done.inputs = inputs.words
        default.ask(inputs, 1)
        alone = 1e3 * min(default.ask(inputs, 1) for _ in range(3))
        space = _space(subject, options, default, base, done.passed_over)
        load, most = _load(options, space, base, alone)
        deadline = done.began + options.budget
        session = _Session(subject, options, folder, tool, default, base, inputs, load, most, deadline, load_seconds)
        tell(f"a request alone takes {alone:.3g} ms; {load} in flight; {short(base)}; inputs: {inputs.words}")
        _search(session, space, tell, done)
        _compare(session, stack, tell, done)


def _space(subject: Subject, options: Options, default: Served, base: Point, passed_over: dict[str, str]) -> Space:
    """What there is to search for this model, on this machine."""
    config = subject.config
    gpu = gpu_of(config)
    kind = default.loads[0]["format"]
    asked = options.engines is not None
    names = list(options.engines or ())
    for name, engine in ENGINES.items():
        reason = engine.unusable(gpu)
        if asked or not engine.accepts & {kind, "onnx"}:
            continue
        if reason:
            passed_over[name] = reason
        else:
            names.append(name)
    goal = options.goal
    alone = (options.concurrency or (1 if goal.kind == "latency" else 2)) == 1
    most = max(base.max_batch_size, _MOST_ON_GPU if gpu else _MOST_ON_CPU) if base.max_batch_size else 0
    if "preferred_batch_size" in (config.get("dynamic_batching") or {}):
        most = 0  # the user's own batching stays: its sizes go together
    return Space(
        engines=names,
        precisions=options.precisions,
        cores=hosts.cores(),
        gpu=gpu is not None,
        most_batch=most,
        longest_delay_us=int(250 * goal.p99) if goal.p99 else Space().longest_delay_us,
        instances=len(config.get("instance_group") or []) < 2,
        alone=alone,
    )


def _load(options: Options, space: Space, base: Point, alone: float) -> tuple[int, int]:
    """Requests in flight to begin with, and at most.

    Args:
        alone: milliseconds of a request that is alone.
    """
    if options.concurrency or space.alone:
        count = options.concurrency or 1
        return count, count
    side_by_side = 2 * (4 if space.gpu else space.cores)
    batches = 2 * max(1, base.max_batch_size)
    wait = options.goal.p99 / 2 if options.goal.p99 else _HORIZON
    return max(side_by_side if not options.goal.p99 else 1, min(batches, int(wait / alone))), 2 * batches


def _search(session: _Session, space: Space, tell: Callable[[str], None], done: Run) -> None:
    """Until nothing more helps, or the rest of the budget is needed to compare."""
    goal = session.options.goal
    began, estimated = time.monotonic(), False
    for tried in search(session.base, space, goal, partial(_tried, session)):
        done.rows.append(tried)
        tell(f"{short(tried.point)}: {_figures(tried) or f'could not be served: {tried.reason}'}")
        cost = time.monotonic() - began + (0 if estimated else _server_seconds(session))
        reserve = _reserve(session, done)
        if not estimated:
            estimated = True
            count = max(0, int((session.left() - reserve) / cost))
            tell(
                f"estimate: at most {session.left():.0f} s from here, for some {count} more at {cost:.0f} s each "
                f"and {reserve:.0f} s to compare the best with the config as it is"
            )
        if session.left() - reserve < _MARGIN * cost:
            done.stopped = "the rest of the budget is needed to compare"
            return
        began = time.monotonic()


def _tried(session: _Session, point: Point) -> Tried:
    goal, options = session.options.goal, session.options
    may_change = options.concurrency is None and session.load != session.most
    try:
        with ExitStack() as stack:
            one = session.default if point == session.base else _opened(session, stack, point)

            def measure(concurrency: int) -> Any:
                reading, _ = one.measure(
                    session.tool, Load(1, concurrency), session.inputs, _SECONDS, latencies=_SEARCHING
                )
                return reading

            return loaded(point, goal, session.load, session.most, may_change, measure)
    except NotLoadedError as error:
        if point == session.base:
            raise
        return Tried(point, reason="; ".join(error.reasons.values()))
    except MeasurementError as error:
        if point == session.base:
            raise
        return Tried(point, reason=error.why)


def _opened(session: _Session, stack: ExitStack, point: Point) -> Served:
    """A server with a point, which has answered once."""
    if (engine := ENGINES.get(point.engine)) and (reason := engine.unusable(gpu_of(session.subject.config))):
        raise MeasurementError(f"{point.engine} cannot be used", reason, "Leave it out")
    variant = variant_of(point, session.base, session.subject.config)
    began, seconds = time.monotonic(), max(1.0, session.left())
    one = stack.enter_context(served(session.subject, variant, _place(session.folder), ready_seconds=seconds))
    one.ask(session.inputs, 1)
    session.load_seconds = time.monotonic() - began
    return one


def _reading_seconds(session: _Session, done: Run) -> float:
    """Of one reading in the comparison."""
    latency = max((row.reading.p50 for row in done.rows[:1] if row.reading), default=0.0) / 1e3
    return max(_SECONDS, enough_seconds(latency, _COMPARING)) + STARTUP_SECONDS + latency


def _server_seconds(session: _Session) -> float:
    """Of starting and stopping a server, beside its readings."""
    return session.load_seconds + _STOP_SECONDS


def _reserve(session: _Session, done: Run) -> float:
    """Seconds that the comparison needs."""
    return 2 * _server_seconds(session) + LEAST_ROUNDS * 2 * _reading_seconds(session, done)


def _compare(session: _Session, stack: ExitStack, tell: Callable[[str], None], done: Run) -> None:
    """The config as it is and the best of the search, in turns."""
    goal = session.options.goal
    start = done.rows[0]
    found = [row for row in best_of(done.rows, goal, _FINALISTS + 1) if row is not start and goal.better(row, start)]
    reading = _reading_seconds(session, done)
    finalists = found[:_FINALISTS]
    while len(finalists) > 1 and session.left() < len(finalists) * _server_seconds(session) + LEAST_ROUNDS * reading * (
        1 + len(finalists)
    ):
        finalists.pop()
    entered: list[tuple[Tried, Served]] = [(start, session.default)]
    for row in finalists:
        try:
            entered.append((row, _opened(session, stack, row.point)))
        except UnifiedError as error:
            tell(f"{short(row.point)} could not be served again: {error.why}")
    readings: list[list[Any]] = [[] for _ in entered]
    rounds = min(_MOST_ROUNDS, int(session.left() / (len(entered) * reading)))
    if len(entered) > 1:
        tell(f"comparing: {rounds} rounds of {len(entered)}, about {rounds * len(entered) * reading:.0f} s")
    for turn in range(rounds if len(entered) > 1 else 0):
        if session.left() < len(entered) * reading * 0.9:
            break
        order = list(range(len(entered)))
        for number in order[turn % len(order) :] + order[: turn % len(order)]:  # none always runs behind the same one
            row, one = entered[number]
            load = Load(1, row.concurrency)
            value, _ = one.measure(session.tool, load, session.inputs, _SECONDS, latencies=_COMPARING)
            readings[number].append(value)
    done.compared = [
        Compared(row.point, row.concurrency, values)
        for (row, _), values in zip(entered, readings, strict=True)
        if values
    ]
    if done.compared:
        done.decision = decide(done.compared[0], done.compared[1:], goal)
    else:
        done.decision = _without_comparison(start, done.rows, goal, bool(finalists))


def _without_comparison(start: Tried, rows: Sequence[Tried], goal: Goal, ran_out: bool) -> Decision:
    if ran_out:
        return Decision(None, None, "the budget left no time to compare")
    return Decision(None, None, "nothing that was tried is better")


def short(point: Point) -> str:
    """A point in a few words."""
    words = [point.engine, point.precision, f"x{point.instances}", f"{point.threads} threads"]
    words += [f"max batch {point.max_batch_size}"] if point.max_batch_size else []
    words += [f"delay {point.delay_us} us"] if point.delay_us else []
    words += [f"preferred {point.preferred}"] if point.preferred else []
    return " ".join(filter(None, words))


def _figures(row: Tried) -> str:
    if row.reading is None:
        return ""
    reading = row.reading
    return (
        f"{reading.throughput:.1f}/s p50 {reading.p50:.2f} ms p99 {reading.p99:.2f} ms at {row.concurrency} in flight"
    )


def _place(folder: Path) -> Path:
    place = folder / str(len(list(folder.iterdir())))
    place.mkdir()
    return place
