"""What a result says to do, in words: each sentence is of readings that differ by more than their noise.

Variants are compared round by round, because those of one round were taken seconds apart: a claim holds in every round.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from statistics import median

from unified_backend.measuring.result import PointResult, Result, ServedVariant

__all__ = ["advice", "ratio"]

_CLEARLY = 1.05  # in every round
_CLEARLY_ONCE = 1.25  # of a single round, whose noise is not known
_IDLE = 0.25
_QUEUE = 0.5
_NETWORK = 0.3
_STEP = 0.5


def advice(result: Result) -> list[str]:
    """Sentences, those that change most first: engine, precision, form, instances, batch, load."""
    told = [
        *_engines(result),
        *_precisions(result),
        *_forms(result),
        *_instances(result),
        *_batches(result),
        *_concurrencies(result),
        *_parts(result),
    ]
    return list(dict.fromkeys(told))


def ratio(one: PointResult, other: PointResult) -> float | None:
    """Throughput of one over that of the other where it is clear; None where noise may have made it."""
    ratios = [
        mine.throughput / theirs.throughput
        for mine, theirs in zip(one.rounds, other.rounds, strict=False)
        if theirs.throughput
    ]
    if not ratios:
        return None
    bound = _CLEARLY if len(ratios) > 1 else _CLEARLY_ONCE
    clear = min(ratios) > bound or max(ratios) < 1 / bound
    return median(ratios) if clear else None


def _engines(result: Result) -> Iterator[str]:
    """The engine that is fastest at each load, where it is clear."""
    for group in _alike(result, "asked_engine"):
        wins: dict[tuple[str, str], list[tuple[float, PointResult]]] = {}
        for points in _same_load(result, group):
            best, *rest = sorted(points, key=_speed, reverse=True)
            for other in rest:
                if value := ratio(best, other):
                    key = (_of(group, best).asked_engine, _of(group, other).asked_engine)
                    wins.setdefault(key, []).append((value, best))
        for (winner, loser), found in wins.items():
            answers = {row.asked_engine: row.engine for row in group}
            chosen = winner if winner != "auto" else f"auto (which is {answers[winner]})"
            yield (
                f"{_named(result, group)}{chosen} gives {_times([value for value, _ in found])} the throughput of "
                f"{loser} {_loads([point for _, point in found], result)}: engine: {winner}"
            )


def _precisions(result: Result) -> Iterator[str]:
    """What a lower precision gains, and what it costs."""
    for group in _alike(result, "precision"):
        plain = next((row for row in group if row.precision in ("fp32", "as it came")), None)
        for row in group:
            if plain is None or row is plain:
                continue
            clear = [(value, one) for one, other in _same_load(result, [row, plain]) if (value := ratio(one, other))]
            if not clear:
                continue
            gain = f"gives {_times([value for value, _ in clear])} the throughput of {plain.precision}"
            loads = _loads([point for _, point in clear], result)
            yield f"{_named(result, [row])}{row.precision} on {row.engine} {gain} {loads}{_errors(row)}"


def _errors(row: ServedVariant) -> str:
    """What verification saw of a precision, at its worst output."""
    rows = [one for one in row.verified if one.compared_with == "the model in FP32"] or list(row.verified)
    worst = max((one.max_rel for one in rows), default=None)
    if worst is None:
        return ""
    top1 = min((one.top1 for one in rows if one.top1 is not None), default=None)
    same = "" if top1 is None else f", and {top1:.0%} of its samples keep their likeliest class"
    return f"; its answers differ by up to {worst:.1e} of the largest value{same}"


def _forms(result: Result) -> Iterator[str]:
    """A pipeline fused against the ensemble of its steps."""
    ids = {row.id: row for row in result.variants}
    for row in result.variants:
        other = ids.get(row.id.replace("fused", "ensemble", 1))
        if not row.id.startswith("fused") or other is None:
            continue
        for points in _same_load(result, [row, other]):
            if found := ratio(points[0], points[1]):
                yield f"fused gives {found:.2f} times the ensemble's throughput {_loads([points[0]], result)}"


def _instances(result: Result) -> Iterator[str]:
    """Instances and threads: the best against the fewest instances with the most threads."""
    for group in _alike(result, "instances", "threads"):
        base = min(group, key=lambda row: (row.instances, -row.threads))
        for points in _same_load(result, group):
            first = next((point for point in points if point.variant == base.id), None)
            best = max(points, key=_speed)
            if first is None or best is first:
                continue
            found = ratio(best, first)
            if found:
                one = _of(group, best)
                words = f"{'give' if one.instances > 1 else 'gives'} {found:.2f} times {_shape(base)}"
                yield f"{_named(result, group)}{_shape(one)} {words} {_loads([best], result)}"


def _shape(row: ServedVariant) -> str:
    return (
        f"{row.instances} instance{'s' * (row.instances > 1)} with {row.threads} thread{'s' * (row.threads > 1)} each"
    )


def _batches(result: Result) -> Iterator[str]:
    """The batch that gains most, of one variant."""
    for row, points in _fastest(result):
        for concurrency in sorted({point.concurrency for point in points}):
            same = sorted((p for p in points if p.concurrency == concurrency), key=lambda p: p.batch)
            if len(same) < 2:
                continue
            best = max(same, key=_speed)
            found = ratio(best, same[0])
            where = f"({row.id}, concurrency {concurrency})"
            if best is not same[0] and found:
                yield f"batches of {best.batch} give {found:.1f} times the inferences of {same[0].batch} {where}"
            elif best is same[0] and (lost := ratio(same[-1], same[0])):
                yield f"batches of {same[-1].batch} give {lost:.2f} times the inferences of {same[0].batch} {where}"


def _concurrencies(result: Result) -> Iterator[str]:
    """Where more requests in flight only wait."""
    for row, points in _fastest(result):
        for batch in sorted({point.batch for point in points}):
            same = sorted((p for p in points if p.batch == batch), key=lambda p: p.concurrency)
            for one, more in itertools.pairwise(same):
                before, after = one.latency("p50"), more.latency("p50")
                grown = after.median / before.median if before and after else 0.0
                gained = ratio(more, one)
                if (gained is None or gained < 1) and grown > 0.7 * more.concurrency / one.concurrency:
                    yield (
                        f"{row.id} is saturated by {one.concurrency} request{'s' * (one.concurrency > 1)} of batch "
                        f"{batch}: with {more.concurrency} in flight throughput does not rise, and p50 is "
                        f"{grown:.1f} times as long"
                    )
                    break


def _parts(result: Result) -> Iterator[str]:
    """Where the time of the busiest load goes.

    What overlaps batches answers after its execution, as Triton counts it: at more than one request in flight the time
    until then is in `network`, and `busy` lacks it.
    """
    for row, points in _fastest(result):
        point = max(points, key=lambda p: (p.concurrency, p.batch))
        where = f"({row.id}, batch {point.batch}, concurrency {point.concurrency})"
        queue, network = (_share(point, part) for part in ("queue", "network"))
        idle = None if point.busy is None or (point.concurrency > 1 and network > _NETWORK) else 1 - point.busy
        if idle is not None and idle > _IDLE and queue < _QUEUE:
            yield f"the engine idles {idle:.0%} of the time {where}: raise the concurrency, or look at the client"
        if queue > _QUEUE:
            do = "more instances would share it" if idle and idle > _IDLE else "fewer requests in flight, or more cores"
            yield f"the queue is {queue:.0%} of the latency {where}: {do}"
        lone = max((p for p in points if p.concurrency == 1), key=lambda p: p.batch, default=None)
        if lone and (way := _share(lone, "network")) > _NETWORK and result.options.get("protocol") != "shm":
            of = f"({row.id}, batch {lone.batch}, concurrency 1)"
            yield f"{way:.0%} of the latency is the way to the server and back {of}: try --protocol shm"
        costs = {step.model: sum(step.parts.values()) for step in point.steps}
        if costs and (total := sum(costs.values())) and max(costs.values()) > _STEP * total:
            slowest = max(costs, key=lambda name: costs[name])
            yield f"{slowest} takes {costs[slowest] / total:.0%} of the time of the steps {where}: begin there"


def _share(point: PointResult, part: str) -> float:
    whole = sum(point.parts.values())
    return point.parts.get(part, 0.0) / whole if whole else 0.0


def _alike(result: Result, *fields: str) -> Iterator[list[ServedVariant]]:
    """Groups of variants that differ in these fields alone, as far as it was asked for."""
    groups: dict[tuple[object, ...], list[ServedVariant]] = {}
    for row in result.variants:
        others = [name for name in ("model", "asked_engine", "precision", "instances") if name not in fields]
        # Where the number of instances was not asked for, threads follow from it, and from the engine.
        groups.setdefault((_form(row), *(getattr(row, name) for name in others), _threads(row, fields)), []).append(row)
    yield from (group for group in groups.values() if len(group) > 1)


def _threads(row: ServedVariant, fields: Sequence[str]) -> str:
    """Of the ones that were asked for, which the id tells."""
    return "" if "threads" in fields else row.id.partition(f"x{row.instances}")[2]


def _same_load(result: Result, group: Sequence[ServedVariant]) -> Iterator[list[PointResult]]:
    """The group's points under one load, in the group's order, load after load."""
    loads: dict[tuple[int, int], list[PointResult]] = {}
    for row in group:
        for point in result.points:
            if point.variant == row.id:
                loads.setdefault((point.batch, point.concurrency), []).append(point)
    yield from (points for points in loads.values() if len(points) > 1)


def _fastest(result: Result) -> Iterator[tuple[ServedVariant, list[PointResult]]]:
    """Of each model and form the variant that is fastest at its best load: what is said of loads is said of it."""
    best: dict[tuple[str, str], tuple[ServedVariant, list[PointResult]]] = {}
    for row in result.variants:
        points = [point for point in result.points if point.variant == row.id]
        if not points:
            continue
        found = best.setdefault((row.model, _form(row)), (row, points))
        if max(map(_speed, points)) > max(map(_speed, found[1])):
            best[row.model, _form(row)] = (row, points)
    yield from best.values()


def _form(row: ServedVariant) -> str:
    """`ensemble` or `fused`, of a pipeline."""
    first = row.id.split()[0]
    return first if first in ("ensemble", "fused") else ""


def _of(group: Sequence[ServedVariant], point: PointResult) -> ServedVariant:
    return next(row for row in group if row.id == point.variant)


def _speed(point: PointResult) -> float:
    return point.throughput.median


def _named(result: Result, group: Sequence[ServedVariant]) -> str:
    """The model, where there are several."""
    return f"{group[0].model}: " if len({row.model for row in result.variants}) > 1 else ""


def _times(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return f"{low} times" if low == high else f"{low} to {high} times"


def _loads(points: Sequence[PointResult], result: Result) -> str:
    """The loads that a sentence is of."""
    every = {(point.batch, point.concurrency) for point in result.points}
    mine = sorted({(point.batch, point.concurrency) for point in points})
    if len(mine) == len(every) > 1:
        return "at every load"
    return "at " + ", ".join(f"batch {batch} concurrency {concurrency}" for batch, concurrency in mine)
