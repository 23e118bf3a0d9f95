"""What `bench` measured, and the JSON values of it; `saved` has the file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from unified_backend.measuring.perf_analyzer import EVERY_PART, Reading

__all__ = [
    "PERCENTILES",
    "SCHEMA",
    "Check",
    "PointResult",
    "Result",
    "ServedVariant",
    "Skipped",
    "Spread",
    "Step",
    "spread",
]

SCHEMA = 1
PERCENTILES = ("p50", "p90", "p95", "p99")


@dataclass(frozen=True)
class Spread:
    """The middle of several rounds, and how far they lie apart: the quartiles, where there are two rounds or more."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The spread of one value over the rounds."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


@dataclass(frozen=True)
class Check:
    """One output at one batch size, compared with what it should be; see `verification.Compared`.

    Attributes:
        max_rel: relative to the largest value expected; of an output that is 0 everywhere, `max_abs`.
        compared_with: the source's framework, the model in FP32, ...
    """

    output: str
    max_abs: float
    max_rel: float
    tolerance: float
    passed: bool
    batch: int | None = None
    cosine: float | None = None
    top1: float | None = None
    compared_with: str = ""


@dataclass(frozen=True)
class Step:
    """One step of a pipeline under the pipeline's load; parts in milliseconds a request."""

    model: str
    parts: Mapping[str, float]


@dataclass(frozen=True)
class ServedVariant:
    """One way in which a subject was served, and what its load found.

    Attributes:
        id: names it in points; unique in a result.
        model: that requests went to.
        asked_engine: `auto`, or the engine that was asked for.
        engine: that answers; of a pipeline those of its models, separated by commas.
        precision: that was asked for; `as it came` if none was.
        computes_in: the precision that the network was lowered to, by what the load reports.
        load_seconds: of the phases that the load reports, from the cache or without it, as `notes` say.
        memory_bytes: proportional set size of the model's processes after the warm requests; None where it is not known
            (a server that was running already).
        verified: what the cache's manifests say of the entries that the load used.
    """

    id: str
    model: str
    asked_engine: str
    engine: str
    precision: str
    computes_in: str
    instances: int
    threads: int
    max_batch_size: int
    load_seconds: float | None = None
    memory_bytes: int | None = None
    verified: Sequence[Check] = ()
    notes: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        """Nothing that was verified differs by more than is accepted."""
        return all(check.passed for check in self.verified)


@dataclass(frozen=True)
class PointResult:
    """One variant under one load.

    Attributes:
        rounds: one reading a round.
        steps: of an ensemble, from the server's statistics; of a fused pipeline, from the backend's metrics.
        busy: share of the time in which its instances were executing (of an ensemble: the busiest model's), from the
            server's statistics; None where they do not tell.
        mean_batch: samples in one execution, likewise.
    """

    variant: str
    batch: int
    concurrency: int
    rounds: Sequence[Reading]
    steps: Sequence[Step] = ()
    busy: float | None = None
    mean_batch: float | None = None

    @property
    def throughput(self) -> Spread:
        """Inferences a second, over the rounds."""
        return spread([reading.throughput for reading in self.rounds])

    def latency(self, percentile: str) -> Spread | None:
        """`p50`, `p90`, `p95` or `p99` over the rounds, in milliseconds; None where none was measured."""
        known = [value for reading in self.rounds if not math.isnan(value := getattr(reading, percentile))]
        return spread(known) if known else None

    @property
    def parts(self) -> dict[str, float]:
        """Medians over the rounds, in milliseconds, of the parts that every round has."""
        names = [name for name in EVERY_PART if all(name in reading.parts for reading in self.rounds)]
        return {name: median(reading.parts[name] for reading in self.rounds) for name in names}

    def to_json(self) -> dict[str, Any]:
        """With medians and spreads beside the rounds."""
        values = {name: getattr(self, name) for name in ("variant", "batch", "concurrency")}
        values["rounds"] = [_reading_to_json(reading) for reading in self.rounds]
        spreads = {"throughput": self.throughput, **{name: self.latency(name) for name in PERCENTILES}}
        values |= {name: found and dataclasses.asdict(found) for name, found in spreads.items()}
        values |= {"parts": self.parts, "busy": self.busy, "mean_batch": self.mean_batch}
        return values | ({"steps": [dataclasses.asdict(step) for step in self.steps]} if self.steps else {})


@dataclass(frozen=True)
class Skipped:
    """A variant or a point that could not be measured."""

    what: str
    why: str


@dataclass(frozen=True)
class Result:
    """A whole run.

    Attributes:
        made: when it began, ISO 8601 with the zone.
        seconds: that it took, loads included; `estimate_seconds` is what it was said to take.
        subject: `name`, `kind` (`model`, `repository` or `pipeline`) and `models`.
        machine: `cpu`, `cores`, `memory_bytes`, `gpu`, `system`.
        inputs: what requests held, in words.
        options: `protocol`, `duration` and `rounds`.
    """

    made: str
    subject: Mapping[str, Any]
    command: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    inputs: str
    seconds: float = 0.0
    estimate_seconds: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    variants: Sequence[ServedVariant] = ()
    points: Sequence[PointResult] = ()
    skipped: Sequence[Skipped] = ()
    advice: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON values, in the agreed schema."""
        values = {name.name: getattr(self, name.name) for name in dataclasses.fields(self)}
        values["variants"] = [dataclasses.asdict(row) for row in self.variants]
        values["points"] = [row.to_json() for row in self.points]
        values["skipped"] = [dataclasses.asdict(row) for row in self.skipped]
        return {"schema": SCHEMA, **json.loads(json.dumps(_finite(values)))}

    @property
    def models(self) -> tuple[str, ...]:
        """Those of the subject, and those that requests went to."""
        return tuple(dict.fromkeys([*self.subject["models"], *(one.model for one in self.variants)]))

    def variants_of(self, model: str) -> tuple[ServedVariant, ...]:
        """Those of one model, in the order in which they were measured."""
        return tuple(one for one in self.variants if one.model == model)

    def points_of(self, variant: ServedVariant) -> tuple[PointResult, ...]:
        """Those of one variant, by batch and then by concurrency."""
        own = (point for point in self.points if point.variant == variant.id)
        return tuple(sorted(own, key=lambda point: (point.batch, point.concurrency)))

    def with_advice(self, advice: Sequence[str]) -> Result:
        """The same, with what it says to do."""
        return dataclasses.replace(self, advice=tuple(advice))


def _reading_to_json(reading: Reading) -> dict[str, Any]:
    values = {name: getattr(reading, name) for name in ("throughput", *PERCENTILES)}
    return values | {"parts": dict(reading.parts)}


def _finite(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
