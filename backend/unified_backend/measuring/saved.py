"""The file of a benchmark: JSON, held to its schema when it is read."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend.errors import Refused, one_line
from unified_backend.measuring.perf_analyzer import Reading
from unified_backend.measuring.result import (
    PERCENTILES,
    SCHEMA,
    Check,
    PointResult,
    Result,
    ServedVariant,
    Skipped,
    Step,
)

__all__ = ["parse", "read_result", "write_result"]

_SCHEMA = Path(__file__).with_name("result.schema.json")
_DO = "Name a file that `triton-unified bench --out` wrote"


def write_result(result: Result, path: Path) -> None:
    """
    Raises:
        Refused: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(result.to_json(), indent=1) + "\n")
    except OSError as error:
        raise Refused(f"{path} cannot be written", str(error.strerror), "Name a file elsewhere") from None


def read_result(path: Path) -> Result:
    """What an earlier run saved.

    Raises:
        Refused: it is not there, no such result, or of another schema.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Refused(f"{path} cannot be read", str(error.strerror), _DO) from None
    except ValueError as error:
        raise Refused(f"{path} is no result of bench", f"it is not JSON: {error}", _DO) from None
    return parse(values, str(path))


def parse(values: Any, name: str = "the result") -> Result:
    """The JSON values of a result as it was measured.

    Raises:
        Refused: they are none, or of another schema; says which value.
    """
    import jsonschema

    if not isinstance(values, dict) or "schema" not in values:
        raise Refused(f"{name} is no result of bench", 'it has no "schema"', _DO)
    if values["schema"] != SCHEMA:
        why = f"its schema is {json.dumps(values['schema'])[:40]}, and this version reads {SCHEMA}"
        raise Refused(f"{name} cannot be read", why, "Measure again with this version")
    cleaned = _cleaned(values)
    errors = jsonschema.Draft202012Validator(json.loads(_SCHEMA.read_text("utf-8"))).iter_errors(cleaned)
    if first := min(errors, key=lambda one: list(map(str, one.path)), default=None):
        place = "/".join(map(str, first.absolute_path)) or "it"
        raise Refused(f"{name} is no whole result of bench", f"{place}: {one_line(first.message)[:300]}", _DO)
    variants = [
        _made(ServedVariant, row | {"verified": [_made(Check, check) for check in row.get("verified") or ()]})
        for row in cleaned["variants"]
    ]
    points = [_point(row) for row in cleaned["points"]]
    _require_named(name, variants, points)
    skipped = [_made(Skipped, row) for row in cleaned["skipped"]]
    done: Result = _made(Result, cleaned | {"variants": variants, "points": points, "skipped": skipped})
    return done


def _point(row: Mapping[str, Any]) -> PointResult:
    rounds = [_reading(reading) for reading in row["rounds"]]
    steps = [_made(Step, step) for step in row.get("steps") or ()]
    point: PointResult = _made(PointResult, {**row, "rounds": rounds, "steps": steps})
    return point


def _made(kind: Any, row: Mapping[str, Any]) -> Any:
    """A dataclass of the row's values; what a later version may have added is passed over."""
    return kind(**{one.name: row[one.name] for one in dataclasses.fields(kind) if one.name in row})


def _reading(row: Mapping[str, Any]) -> Reading:
    latencies = {name: math.nan if row.get(name) is None else float(row[name]) for name in PERCENTILES}
    parts = {part: float(value) for part, value in (row.get("parts") or {}).items() if value is not None}
    return Reading(throughput=float(row["throughput"]), parts=parts, **latencies)


def _cleaned(value: Any) -> Any:
    """The same with text that can stand in a page or on a line."""
    match value:
        case str():
            return one_line(value)
        case Mapping():
            return {one_line(str(key)): _cleaned(one) for key, one in value.items()}
        case Sequence():
            return [_cleaned(one) for one in value]
    return value


def _require_named(name: str, variants: Sequence[ServedVariant], points: Sequence[PointResult]) -> None:
    what = f"{name} is no whole result of bench"
    twice = [ident for ident, count in Counter(variant.id for variant in variants).items() if count > 1]
    if twice:
        raise Refused(what, f'two variants are named "{twice[0]}", and points name their variant', _DO)
    unknown = {point.variant for point in points} - {variant.id for variant in variants}
    if unknown:
        raise Refused(what, f'a point names the variant "{min(unknown)}", which is not there', _DO)
