"""What was measured, between dataclasses and the JSON that `bench --out` saves and reports are drawn from."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from unified_backend.errors import Refused
from unified_backend.measuring.perf_analyzer import PARTS, Reading

__all__ = ["SCHEMA", "PointResult", "Result", "ServedVariant", "Skipped", "Spread", "read_result", "spread"]

SCHEMA = 1
_PERCENTILES = ("p50", "p90", "p95", "p99")


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
        verified: errors by output, as the cache's manifests have them.
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
    verified: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class PointResult:
    """One variant under one load.

    Attributes:
        rounds: one reading a round.
        steps: of an ensemble, `model` and its `parts` in milliseconds a request, from the server's statistics.
        busy: share of the time in which its instances were executing (of an ensemble: the busiest model's), from the
            server's statistics; None where they do not tell.
        mean_batch: samples in one execution, likewise.
    """

    variant: str
    batch: int
    concurrency: int
    rounds: Sequence[Reading]
    steps: Sequence[Mapping[str, Any]] = ()
    busy: float | None = None
    mean_batch: float | None = None

    def spread(self, name: str) -> Spread:
        """Of `throughput`, `p50`, `p90`, `p95` or `p99` over the rounds."""
        return spread([getattr(reading, name) for reading in self.rounds])

    @property
    def parts(self) -> dict[str, float]:
        """Medians over the rounds, in milliseconds, of the parts that every round has."""
        names = [name for name in PARTS if all(name in reading.parts for reading in self.rounds)]
        return {name: median(reading.parts[name] for reading in self.rounds) for name in names}

    def to_json(self) -> dict[str, Any]:
        """With medians and spreads beside the rounds."""
        values = {name: getattr(self, name) for name in ("variant", "batch", "concurrency")}
        values["rounds"] = [_reading_to_json(reading) for reading in self.rounds]
        for name in ("throughput", *_PERCENTILES):
            values[name] = dataclasses.asdict(self.spread(name))
        values |= {"parts": self.parts, "busy": self.busy, "mean_batch": self.mean_batch}
        return values | ({"steps": list(self.steps)} if self.steps else {})


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

    def with_advice(self, advice: Sequence[str]) -> Result:
        """The same, with what it says to do."""
        return dataclasses.replace(self, advice=tuple(advice))

    def write(self, path: Path) -> None:
        """Save it.

        Raises:
            Refused: the file cannot be written.
        """
        try:
            path.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        except OSError as error:
            raise Refused(f"{path} cannot be written", str(error.strerror), "Name a file elsewhere") from None


def read_result(path: Path) -> Result:
    """What an earlier run saved.

    Raises:
        Refused: it is not there, no such result, or of another schema.
    """
    do = "Name a file that `triton-unified bench --out` wrote"
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Refused(f"{path} cannot be read", str(error.strerror), do) from None
    except ValueError as error:
        raise Refused(f"{path} is no result of bench", f"it is not JSON: {error}", do) from None
    if not isinstance(values, dict) or "schema" not in values:
        raise Refused(f"{path} is no result of bench", 'it has no "schema"', do)
    if values["schema"] != SCHEMA:
        why = f"its schema is {str(values['schema'])[:40]}, and this version reads {SCHEMA}"
        raise Refused(f"{path} cannot be read", why, "Measure again with this version")
    try:
        return _from_json(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise Refused(f"{path} is no whole result of bench", why, do) from None


def _from_json(values: Mapping[str, Any]) -> Result:
    known = {name.name for name in dataclasses.fields(Result)} & values.keys()
    nested = {
        "variants": [_made(ServedVariant, row) for row in values["variants"]],
        "points": [
            _made(PointResult, row | {"rounds": [_reading(reading) for reading in row["rounds"]]})
            for row in values["points"]
        ],
        "skipped": [_made(Skipped, row) for row in values["skipped"]],
    }
    for point in nested["points"]:
        if not point.rounds:
            raise ValueError(f"{point.variant}: a point has no rounds")
    return Result(**{name: values[name] for name in known} | nested)


def _made(kind: Any, row: Mapping[str, Any]) -> Any:
    """A dataclass of the row's values; what a later version may have added is passed over."""
    return kind(**{one.name: row[one.name] for one in dataclasses.fields(kind) if one.name in row})


def _reading_to_json(reading: Reading) -> dict[str, Any]:
    values = {name: getattr(reading, name) for name in ("throughput", *_PERCENTILES)}
    return values | {"parts": dict(reading.parts)}


def _reading(row: Mapping[str, Any]) -> Reading:
    numbers = {name: math.nan if row[name] is None else float(row[name]) for name in ("throughput", *_PERCENTILES)}
    return Reading(**numbers, parts={str(name): float(value) for name, value in row["parts"].items()})


def _finite(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
