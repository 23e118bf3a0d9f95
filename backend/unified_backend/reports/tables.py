"""The numbers behind each plot, as tables: what is read aloud, copied, or looked up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from unified_backend.amounts import amount
from unified_backend.measuring.result import PointResult, Result, ServedVariant, Spread
from unified_backend.reports.scales import measured, plain
from unified_backend.reports.shares import PARTS, grouped

__all__ = [
    "Cell",
    "Table",
    "best",
    "checks",
    "compared",
    "load_seconds",
    "loads",
    "memory",
    "parts",
    "served",
    "steps",
]

_UNKNOWN = "-"


@dataclass(frozen=True)
class Cell:
    """
    Attributes:
        value: the number itself, of which `text` shows some digits.
        look: id of the variant whose mark stands before it.
        bad: it says that something failed.
    """

    text: str
    value: float | None = None
    look: str | None = None
    bad: bool = False


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        numbers: which columns hold numbers.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: frozenset[int]


def loads(points: Iterable[PointResult], caption: str) -> Table:
    """Throughput and latency of each load."""
    headings = ["variant", "concurrency", "inferences a second", "of rounds", "p50, ms", "of rounds"]
    headings += ["p99, ms", "of rounds", "rounds", "busy, %", "samples an execution"]
    rows = [
        [
            Cell(point.variant, look=point.variant),
            _number(point.concurrency),
            *_spread(point.throughput),
            *_spread(point.latency("p50")),
            *_spread(point.latency("p99")),
            _number(len(point.rounds)),
            Cell(_UNKNOWN) if point.busy is None else Cell(f"{100 * point.busy:.0f}", point.busy),
            _number(point.mean_batch),
        ]
        for point in points
    ]
    return Table(caption, headings, rows, frozenset(range(1, len(headings))))


def parts(points: Iterable[PointResult], caption: str) -> Table:
    """Milliseconds of each part of a request, of the loads that tell them."""
    headings = ("batch", "concurrency", *PARTS, "sum")
    rows = [[_number(point.batch), _number(point.concurrency), *_parts(point.parts)] for point in points if point.parts]
    return Table(caption, headings, rows, frozenset(range(len(headings))))


def steps(points: Iterable[PointResult], caption: str) -> Table:
    """Milliseconds of each part of each step of a pipeline."""
    headings = ("step", "batch", "concurrency", *PARTS, "sum")
    rows = [
        [Cell(step.model), _number(point.batch), _number(point.concurrency), *_parts(step.parts)]
        for point in points
        for step in point.steps
    ]
    return Table(caption, headings, rows, frozenset(range(1, len(headings))))


def served(variants: Sequence[ServedVariant], caption: str) -> Table:
    """What each variant is."""
    headings = ["variant", "engine", "precision", "computes in", "instances", "threads", "largest batch"]
    noted = any(variant.notes for variant in variants)
    rows = []
    for one in variants:
        engine = one.engine if one.engine == one.asked_engine else f"{one.engine} (asked for {one.asked_engine})"
        texts = [Cell(engine), Cell(one.precision), Cell(one.computes_in or _UNKNOWN)]
        numbers = map(_number, (one.instances, one.threads, one.max_batch_size))
        notes = [Cell("; ".join(one.notes) or _UNKNOWN)] if noted else []
        rows.append([Cell(one.id, look=one.id), *texts, *numbers, *notes])
    return Table(caption, headings + ["notes"] * noted, rows, frozenset({4, 5, 6}))


def compared(result: Result, variants: Sequence[ServedVariant], caption: str) -> Table:
    """The best of each variant, and what it costs."""
    headings = ["variant", "most inferences a second", "shortest p50, ms", "largest error", "accepted"]
    headings += ["verified", "memory", "load, s"]
    rows = []
    for one in variants:
        points = result.points_of(one)
        latencies = [found.median for point in points if (found := point.latency("p50")) is not None]
        worst = max(one.verified, key=lambda check: (not check.passed, check.max_rel), default=None)
        verdict = "passed" if one.passed else "FAILED"
        rows.append(
            [
                Cell(one.id, look=one.id),
                _number(max((point.throughput.median for point in points), default=None)),
                _number(min(latencies, default=None)),
                _error(worst.max_rel if worst else None),
                _error(worst.tolerance if worst else None),
                Cell(verdict if worst else _UNKNOWN, bad=not one.passed),
                _bytes(one.memory_bytes),
                _number(one.load_seconds),
            ]
        )
    return Table(caption, headings, rows, frozenset({1, 2, 3, 4, 6, 7}))


def best(points: Mapping[str, PointResult], caption: str) -> Table:
    """One load of each variant."""
    headings = ("variant", "batch", "concurrency", "inferences a second", "of rounds")
    rows = [
        [Cell(name, look=name), _number(point.batch), _number(point.concurrency), *_spread(point.throughput)]
        for name, point in points.items()
    ]
    return Table(caption, headings, rows, frozenset(range(1, len(headings))))


def memory(variants: Sequence[ServedVariant], caption: str) -> Table:
    """Bytes of each variant."""
    rows = [[Cell(one.id, look=one.id), _bytes(one.memory_bytes)] for one in variants]
    return Table(caption, ("variant", "memory"), rows, frozenset({1}))


def load_seconds(variants: Sequence[ServedVariant], caption: str) -> Table:
    """Seconds of each variant."""
    rows = [[Cell(one.id, look=one.id), _number(one.load_seconds)] for one in variants]
    return Table(caption, ("variant", "seconds"), rows, frozenset({1}))


def checks(variants: Sequence[ServedVariant], caption: str) -> Table:
    """Every verification."""
    headings = ["variant", "output", "batch", "max abs", "max rel", "accepted", "cosine", "same top class, %"]
    headings += ["verified", "compared with"]
    rows = [
        [
            Cell(one.id, look=one.id),
            Cell(check.output),
            _number(check.batch),
            _error(check.max_abs),
            _error(check.max_rel),
            _error(check.tolerance),
            Cell(_UNKNOWN) if check.cosine is None else Cell(f"{check.cosine:.6f}", check.cosine),
            Cell(_UNKNOWN) if check.top1 is None else Cell(f"{100 * check.top1:.1f}", check.top1),
            Cell("passed" if check.passed else "FAILED", bad=not check.passed),
            Cell(check.compared_with or _UNKNOWN),
        ]
        for one in variants
        for check in one.verified
    ]
    return Table(caption, headings, rows, frozenset(range(2, 8)))


def _number(value: float | None) -> Cell:
    if value is None:
        return Cell(_UNKNOWN)
    return Cell(f"{value:,}" if isinstance(value, int) else measured(value), value)


def _error(value: float | None) -> Cell:
    return Cell(_UNKNOWN) if value is None else Cell(plain(value), value)


def _bytes(value: int | None) -> Cell:
    return Cell(_UNKNOWN) if value is None else Cell(amount(value), value)


def _spread(spread: Spread | None) -> tuple[Cell, Cell]:
    if spread is None:
        return Cell(_UNKNOWN), Cell(_UNKNOWN)
    quartiles = f"{measured(spread.low)} to {measured(spread.high)}"
    return Cell(measured(spread.median), spread.median), Cell(quartiles)


def _parts(told: Mapping[str, float]) -> list[Cell]:
    values = grouped(told)
    return [*map(_number, values.values()), _number(sum(values.values()))]
