"""What a server counted between two moments: where the time of requests went, by model, and how busy it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unified_backend.measuring.result import Step

__all__ = ["Counts", "counted"]

_PARTS = {
    "queue": "queue",
    "input": "compute_input",
    "infer": "compute_infer",
    "output": "compute_output",
}


@dataclass(frozen=True)
class Counts:
    """The server's view of one reading.

    Attributes:
        steps: each model that ran for the one that requests went to, with the parts of one of its own requests.
        requests: that the first model answered.
        busy_seconds: of the busiest model: of its instances' executions, over the number of instances.
        mean_batch: samples in one execution of that model.
    """

    steps: Sequence[Step]
    requests: int
    busy_seconds: float | None
    mean_batch: float | None


def counted(
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
    models: Sequence[str],
    instances: Callable[[str], int],
) -> Counts:
    """The difference between two statistics of a server.

    Args:
        models: those that belong to what was measured, the one that requests go to first.
        instances: of a model.
    """
    steps, requests = [], 0
    busiest: tuple[float, float] | None = None
    for name in models:
        old, new = before.get(name, {}), after.get(name, {})
        answered = _count(new, "success") - _count(old, "success")
        requests = answered if name == models[0] else requests
        executions = int(new.get("execution_count") or 0) - int(old.get("execution_count") or 0)
        samples = int(new.get("inference_count") or 0) - int(old.get("inference_count") or 0)
        if answered <= 0 or executions <= 0:
            continue
        parts = {part: (_ns(new, key) - _ns(old, key)) / answered / 1e6 for part, key in _PARTS.items()}
        if name != models[0]:  # an ensemble is counted beside its steps
            steps.append(Step(name, parts))
        if _runs(new):
            busy = (_executing(new) - _executing(old)) / 1e9 / instances(name)
            if busiest is None or busy > busiest[0]:
                busiest = (busy, samples / executions)
    return Counts(steps, requests, *(busiest or (None, None)))


def _count(row: Mapping[str, Any], kind: str) -> int:
    return int(((row.get("inference_stats") or {}).get(kind) or {}).get("count") or 0)


def _ns(row: Mapping[str, Any], kind: str) -> int:
    return int(((row.get("inference_stats") or {}).get(kind) or {}).get("ns") or 0)


def _runs(row: Mapping[str, Any]) -> bool:
    """Whether instances execute it: an ensemble's requests are those of its steps."""
    return bool(row.get("batch_stats"))


def _executing(row: Mapping[str, Any]) -> int:
    """Nanoseconds of all executions."""
    return sum(
        int((size.get(part) or {}).get("ns") or 0)
        for size in row.get("batch_stats") or []
        for part in ("compute_input", "compute_infer", "compute_output")
    )
