"""A model tuned: its config as it is is served and loaded, then what the search asks for, then the best side by side.

done = Run()
run(subject, Options(Goal(p99=20.0)), folder, find_perf_analyzer(), print, done)
done.decision, done.rows
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from unified_backend import hosts
from unified_backend.errors import MeasurementError
from unified_backend.forms.reference import ENGINES
from unified_backend.gpus import gpu_of
from unified_backend.measuring.perf_analyzer import Reading
from unified_backend.measuring.serving import NotLoadedError
from unified_backend.measuring.subjects import Subject
from unified_backend.tuning.comparing import LEAST_ROUNDS, Compared, Decision, decide
from unified_backend.tuning.search import Goal, Tried, best_of, search
from unified_backend.tuning.served_point import loaded
from unified_backend.tuning.servers import STOP_SECONDS, Servers
from unified_backend.tuning.space import Point, Space
from unified_backend.tuning.timing import COMPARING, SEARCHING

__all__ = ["Options", "Run", "run", "short"]

_HORIZON = 100.0  # milliseconds that a request may wait in a load without a budget
_MOST_ROUNDS = 7
_MOST_ON_CPU, _MOST_ON_GPU = 32, 128  # of max_batch_size
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
        busy: processes that ran on this machine, on average, in the minute before.
    """

    base: Point | None = None
    inputs: str = ""
    rows: list[Tried] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)
    compared: list[Compared] = field(default_factory=list)
    decision: Decision | None = None
    stopped: str = ""
    busy: float = field(default_factory=lambda: os.getloadavg()[0])
    began: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class _Load:
    """Requests in flight to begin with, and at most, and the milliseconds of one that is alone."""

    first: int
    most: int
    alone: float


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
    deadline = done.began + options.budget - STOP_SECONDS

    def left() -> float:
        return deadline - time.monotonic()

    tell(f"loading {subject.name} as it is")
    with Servers(subject, folder, tool, options.data, left) as servers:
        done.base, done.inputs = servers.base, servers.inputs.words
        space = _space(subject, options, servers, done.passed_over)
        alone = servers.alone()
        load = _load(options, space, servers.base, alone)
        tell(f"{short(servers.base)}; a request alone takes {alone:.3g} ms; inputs: {done.inputs}")
        space = dataclasses.replace(space, in_flight=load.most if options.goal.p99 else load.first)
        _search(servers, options, space, load, left, tell, done)
        _compare(servers, options, left, tell, done)


def _space(subject: Subject, options: Options, servers: Servers, passed_over: dict[str, str]) -> Space:
    """What there is to search for this model, on this machine."""
    config, base = subject.config, servers.base
    gpu = gpu_of(config)
    kind = servers.default.loads[0]["format"]
    asked = options.engines is not None
    names = []
    for name, engine in ENGINES.items():
        if asked and name not in (options.engines or ()):
            continue
        if not engine.accepts & {kind, "onnx"}:
            if asked:
                passed_over[name] = f"it takes {', '.join(sorted(engine.accepts))}, and no {kind}"
        elif reason := engine.unusable(gpu):
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


def _load(options: Options, space: Space, base: Point, alone: float) -> _Load:
    """Enough requests to fill the batches of the config as it is, unless the model is slow, or its budget short."""
    if options.concurrency or space.alone:
        count = options.concurrency or 1
        return _Load(count, count, alone)
    side_by_side = 2 * (4 if space.gpu else space.cores)
    batches = 2 * max(1, base.max_batch_size)
    wait = options.goal.p99 / 2 if options.goal.p99 else _HORIZON
    least = 1 if options.goal.p99 else side_by_side
    return _Load(max(least, min(batches, int(wait / alone))), 2 * batches, alone)


def _search(
    servers: Servers,
    options: Options,
    space: Space,
    load: _Load,
    left: Callable[[], float],
    tell: Callable[[str], None],
    done: Run,
) -> None:
    """Until nothing more helps, or the rest of the budget is needed to compare."""
    goal = options.goal
    began = time.monotonic()
    for tried in search(servers.base, space, goal, partial(_tried, servers, options, load)):
        done.rows.append(tried)
        tell(f"{short(tried.point)}: {_figures(tried) or f'could not be served: {tried.reason}'}")
        if tried.leads:
            servers.keep(tried.point)
        is_first = len(done.rows) == 1
        cost = time.monotonic() - began + (servers.point_seconds() if is_first else 0.0)
        reserve = LEAST_ROUNDS * _round_seconds(done, options)
        if is_first:
            count = max(0, int((left() - reserve) / cost))
            tell(
                f"estimate: at most {max(0.0, left()):.0f} s from here: {reserve:.0f} s to compare the best with the "
                f"config as it is, and before that some {count} more at {cost:.0f} s each"
            )
        if left() - reserve < _MARGIN * cost:
            done.stopped = "the rest of the budget is needed to compare"
            return
        began = time.monotonic()


def _tried(
    servers: Servers, options: Options, load: _Load, point: Point, best: Tried | None
) -> tuple[Tried, Tried | None]:
    """A point, measured under the load that is best for it, and the best so far again."""

    def measure(concurrency: int) -> Reading:
        expected = concurrency * load.alone
        if best and best.reading:
            expected = best.reading.p50 * concurrency / best.concurrency
        return servers.measure(point, concurrency, SEARCHING.told(expected, options.budget))

    try:
        tried = loaded(point, options.goal, load.first, load.most, options.concurrency is None, measure)
    except MeasurementError as error:
        if best is None:
            raise
        reasons = error.reasons.values() if isinstance(error, NotLoadedError) else [f"{error.what}: {error.why}"]
        return Tried(point, reason="; ".join(reasons)), best
    if best is None or best.reading is None:
        return tried, best
    seconds = SEARCHING.told(best.reading.p50, options.budget)
    again = servers.measure(best.point, best.concurrency, seconds)
    return tried, dataclasses.replace(best, reading=again)


def _round_seconds(done: Run, options: Options) -> float:
    """Of one round of the comparison."""
    compared = (done.rows[0], best_of(done.rows, options.goal) or done.rows[0])
    return sum(COMPARING.taken(row.reading.p50, options.budget) for row in compared if row.reading)


def _compare(
    servers: Servers, options: Options, left: Callable[[], float], tell: Callable[[str], None], done: Run
) -> None:
    """The config as it is and the best of the search, in turns."""
    goal = options.goal
    start, best = done.rows[0], best_of(done.rows, goal)
    if best is None or best is start:
        why = "the budget left no time to try anything else" if done.stopped else "there is nothing else to try"
        if len(done.rows) > 1:
            why = "nothing that was tried is better"
            why += ", and the budget was too short to try everything" if done.stopped else ""
        done.decision = Decision(None, None, why)
        return
    seconds = _round_seconds(done, options)
    rounds = min(_MOST_ROUNDS, int(left() / seconds))
    tell(f"comparing with {short(best.point)}: {rounds} rounds, about {rounds * seconds:.0f} s")

    def length(row: Tried) -> float:
        return COMPARING.told(row.reading.p50 if row.reading else 0.0, options.budget)

    readings: dict[Point, list[Reading]] = {start.point: [], best.point: []}
    for turn in range(rounds):
        if left() < 0.9 * seconds:
            break
        turns = (start, best) if turn % 2 else (best, start)  # none always runs behind the other
        try:
            round_ = {row.point: servers.measure(row.point, row.concurrency, length(row)) for row in turns}
        except MeasurementError as error:
            tell(f"round {turn + 1} was not measured: {error.why}")
            continue
        for point, reading in round_.items():
            readings[point].append(reading)
        done.compared = [Compared(row.point, row.concurrency, tuple(readings[row.point])) for row in (start, best)]
    if done.compared:
        done.decision = decide(done.compared[0], done.compared[1], goal)
    else:
        done.decision = Decision(None, None, "the budget left no time to compare")


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
