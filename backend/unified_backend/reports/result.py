"""The JSON of a benchmark, held to its schema, as typed values."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified_backend.errors import Refused, one_line

__all__ = ["Check", "Point", "Result", "Spread", "Step", "Variant", "read"]

_SCHEMA = Path(__file__).parent / "result.schema.json"
_DO = "Draw what `triton-unified bench` of this release saved"


@dataclass(frozen=True)
class Spread:
    """One quantity over the rounds: their median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Check:
    """One output of one batch size, compared with what the source computes; see `verification.Compared`."""

    output: str
    batch: int | None
    max_abs: float
    max_rel: float
    cosine: float | None
    top1: float | None
    tolerance: float
    compared_with: str
    passed: bool


@dataclass(frozen=True)
class Variant:
    """One thing that was served.

    Attributes:
        memory: bytes; None where it is not known.
    """

    id: str
    model: str
    asked_engine: str
    engine: str
    precision: str
    computes_in: str
    instances: int
    threads: int | None
    max_batch_size: int
    load_seconds: float | None
    memory: int | None
    checks: tuple[Check, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Nothing that was verified differs by more than is accepted."""
        return all(check.passed for check in self.checks)


@dataclass(frozen=True)
class Step:
    """One model of a pipeline under the pipeline's load; parts in milliseconds a request."""

    model: str
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Point:
    """One variant under one load; latencies and parts in milliseconds.

    Attributes:
        throughput: inferences a second.
        p50, p99: None where they were not measured.
        rounds: how many there were.
        busy: share of the time in which the instances were executing.
        mean_batch: samples in one execution.
    """

    variant: str
    batch: int
    concurrency: int
    throughput: Spread
    p50: Spread | None
    p99: Spread | None
    parts: Mapping[str, float]
    steps: tuple[Step, ...]
    rounds: int
    busy: float | None
    mean_batch: float | None


@dataclass(frozen=True)
class Result:
    """All that a benchmark saved."""

    name: str
    kind: str
    models: tuple[str, ...]
    made: str
    seconds: float | None
    command: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    inputs: str
    variants: tuple[Variant, ...]
    points: tuple[Point, ...]
    skipped: tuple[tuple[str, str], ...]
    advice: tuple[str, ...]

    def variants_of(self, model: str) -> tuple[Variant, ...]:
        """Those of one model, in the order they were measured in."""
        return tuple(variant for variant in self.variants if variant.model == model)

    def points_of(self, variant: Variant) -> tuple[Point, ...]:
        """Those of one variant, by batch and then by concurrency."""
        own = (point for point in self.points if point.variant == variant.id)
        return tuple(sorted(own, key=lambda point: (point.batch, point.concurrency)))


def read(result: Mapping[str, Any]) -> Result:
    """
    Raises:
        Refused: it is not what `bench` saves; says which value.
    """
    import jsonschema

    schema = json.loads(_SCHEMA.read_text())
    cleaned = _cleaned(result)
    errors = sorted(
        jsonschema.Draft202012Validator(schema).iter_errors(cleaned), key=lambda one: list(map(str, one.path))
    )
    if errors:
        place = "/".join(map(str, errors[0].absolute_path)) or "the result"
        raise Refused(f"{place} is not as a benchmark saves it", one_line(errors[0].message)[:300], _DO)
    variants = tuple(map(_variant, cleaned["variants"]))
    served = {variant.id: variant.model for variant in variants}
    points = tuple(_point(row, served.get(row["variant"])) for row in cleaned["points"])
    _require_named(variants, points)
    subject = cleaned["subject"]
    return Result(
        name=subject["name"],
        kind=subject["kind"],
        models=tuple(dict.fromkeys([*subject["models"], *(variant.model for variant in variants)])),
        made=cleaned["made"],
        seconds=cleaned.get("seconds"),
        command=cleaned["command"],
        machine=cleaned["machine"],
        versions=cleaned["versions"],
        inputs=cleaned.get("inputs", ""),
        variants=variants,
        points=points,
        skipped=tuple((row["what"], row["why"]) for row in cleaned["skipped"]),
        advice=tuple(cleaned["advice"]),
    )


def _cleaned(value: Any) -> Any:
    """The same with text that can stand in a page, and None for what is no number."""
    match value:
        case str():
            return one_line(value)
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {one_line(str(key)): _cleaned(one) for key, one in value.items()}
        case Sequence():
            return [_cleaned(one) for one in value]
    return value


def _require_named(variants: Sequence[Variant], points: Sequence[Point]) -> None:
    twice = [name for name, count in Counter(variant.id for variant in variants).items() if count > 1]
    if twice:
        raise Refused(f'two variants are named "{twice[0]}"', "points name their variant", _DO)
    unknown = {point.variant for point in points} - {variant.id for variant in variants}
    if unknown:
        raise Refused(f'there is no variant "{min(unknown)}"', "a point names it", _DO)


def _variant(row: Mapping[str, Any]) -> Variant:
    return Variant(
        id=row["id"],
        model=row["model"],
        asked_engine=row.get("asked_engine") or row["engine"],
        engine=row["engine"],
        precision=row["precision"],
        computes_in=row.get("computes_in") or "",
        instances=row["instances"],
        threads=row.get("threads"),
        max_batch_size=row["max_batch_size"],
        load_seconds=row.get("load_seconds"),
        memory=row.get("memory_bytes"),
        checks=tuple(map(_check, row.get("verified") or ())),
        notes=tuple(row.get("notes") or ()),
    )


def _check(row: Mapping[str, Any]) -> Check:
    return Check(
        output=row["output"],
        batch=row.get("batch"),
        max_abs=row["max_abs"],
        max_rel=row["max_rel"],
        cosine=row.get("cosine"),
        top1=row.get("top1"),
        tolerance=row["tolerance"],
        compared_with=row.get("compared_with") or "",
        passed=row["passed"],
    )


def _point(row: Mapping[str, Any], model: str | None) -> Point:
    """
    Args:
        model: that requests went to; Triton's statistics have an ensemble beside its own steps.
    """
    throughput = _spread(row["throughput"])
    assert throughput is not None  # the schema has it
    steps = (Step(step["model"], step["parts"]) for step in row.get("steps") or () if step["model"] != model)
    return Point(
        variant=row["variant"],
        batch=row["batch"],
        concurrency=row["concurrency"],
        throughput=throughput,
        p50=_spread(row.get("p50")),
        p99=_spread(row.get("p99")),
        parts=row.get("parts") or {},
        steps=tuple(steps),
        rounds=len(row.get("rounds") or ()),
        busy=row.get("busy"),
        mean_batch=row.get("mean_batch"),
    )


def _spread(row: Mapping[str, float | None] | None) -> Spread | None:
    median = row.get("median") if row else None
    if row is None or median is None:
        return None
    low, high = row.get("low"), row.get("high")
    return Spread(median, median if low is None else min(low, median), median if high is None else max(high, median))
