"""Results of `bench` made by hand, for tests of what is said of them: the numbers are constructed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unified_backend.measuring.perf_analyzer import Reading
from unified_backend.measuring.result import PointResult, Result, ServedVariant

__all__ = ["point", "result", "variant"]


def variant(ident: str, **fields: Any) -> ServedVariant:
    """One that is called `ENGINE [PRECISION] xN [M threads]`."""
    values = {
        "model": "net",
        "asked_engine": ident.split()[0],
        "engine": ident.split()[0],
        "precision": "as it came",
        "computes_in": "as it came",
        "instances": 1,
        "threads": 2,
        "max_batch_size": 16,
    }
    return ServedVariant(id=ident, **(values | fields))


def point(
    ident: str,
    throughputs: Sequence[float],
    batch: int = 1,
    concurrency: int = 1,
    p50: float = 10.0,
    parts: Mapping[str, float] | None = None,
    **fields: Any,
) -> PointResult:
    """A point with one round for each throughput."""
    parts = parts or {"queue": 0.1, "infer": p50 - 0.1}
    rounds = [Reading(one, p50, 2 * p50, 1.5 * p50, 1.8 * p50, parts) for one in throughputs]
    return PointResult(ident, batch, concurrency, rounds, **fields)


def result(points: Sequence[PointResult], variants: Sequence[ServedVariant] = (), **fields: Any) -> Result:
    """A whole one; variants of the points' names where none are given."""
    names = dict.fromkeys(one.variant for one in points)
    values = {
        "made": "2026-11-27T16:40:00+00:00",
        "subject": {"name": "net", "kind": "model", "models": ["net"]},
        "command": "triton-unified bench net",
        "machine": {"cpu": "a CPU", "cores": 2, "memory_bytes": 8 << 30, "gpu": [], "system": "Linux 6"},
        "versions": {"triton": "2.51.0", "onnxruntime": "1.31.1"},
        "inputs": "random numbers",
        "options": {"protocol": "grpc", "duration": 3.0, "rounds": 3},
    }
    return Result(**(values | fields), variants=variants or [variant(name) for name in names], points=points)
