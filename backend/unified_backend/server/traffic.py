"""What a server did between two of its metrics pages: rates, batches and where the time of a request went."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from unified_backend.server.metrics import Labels, Page

__all__ = ["GpuUse", "Latency", "ModelTraffic", "Traffic", "gained_by_process", "traffic"]

K = TypeVar("K")

Model = tuple[str, str]  # name, version
Samples = Sequence[tuple[Labels, float]]

_SUCCESS, _FAILURE = "nv_inference_request_success", "nv_inference_request_failure"
_REQUEST = "nv_inference_request_duration_us"
# What the time of a request is made of, in its order; without Triton's own work between these.
_PARTS = {
    "queue": "nv_inference_queue_duration_us",
    "input": "nv_inference_compute_input_duration_us",
    "infer": "nv_inference_compute_infer_duration_us",
    "output": "nv_inference_compute_output_duration_us",
}
_ROWS, _RUNS = "nv_inference_count", "nv_inference_exec_count"
_OUR_ROWS, _OUR_RUNS, _OUR_ERRORS = "unified_batch_size_sum", "unified_batch_size_count", "unified_request_errors_total"
_OURS = (_OUR_ROWS, _OUR_RUNS, _OUR_ERRORS)
_COUNTERS = (_SUCCESS, _FAILURE, _REQUEST, *_PARTS.values(), _ROWS, _RUNS)


@dataclasses.dataclass(frozen=True)
class Latency:
    """Mean milliseconds of a request in the server."""

    total: float
    queue: float
    input: float
    infer: float
    output: float


@dataclasses.dataclass(frozen=True)
class ModelTraffic:
    """One version of a model.

    Attributes:
        engines: those that answer; () for models of other backends.
        requests: answered a second, with an error too; None where the model's counters began again meanwhile.
        failures: requests that failed a second.
        batch: mean rows of a run of the engine; None where nothing ran.
        latency: of the requests that were answered; None where none was.
        cache: result -> lookups of the loads so far.
        profile_misses: requests so far that were outside every optimization profile.
    """

    name: str
    version: str
    engines: tuple[str, ...]
    requests: float | None
    failures: float | None
    batch: float | None
    latency: Latency | None
    cache: Mapping[str, int]
    profile_misses: int


@dataclasses.dataclass(frozen=True)
class GpuUse:
    """One GPU: how busy, from 0 to 1, and bytes of its memory; None where the driver does not say."""

    uuid: str
    utilization: float | None
    memory_used: int | None
    memory_total: int | None


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a server did in some seconds.

    Attributes:
        restarted: models whose counters began again: they were loaded anew, or the server was.
    """

    seconds: float
    models: tuple[ModelTraffic, ...]
    gpus: tuple[GpuUse, ...]
    cpu_memory_used: int | None
    cpu_memory_total: int | None
    restarted: tuple[str, ...]


def traffic(before: Page, after: Page) -> Traffic:
    """What happened between two pages of a server."""
    seconds = after.moment - before.moment
    counted = {family: (_by_model(before.of(family)), _by_model(after.of(family))) for family in _COUNTERS}
    ours = {
        family: gained_by_process(before.of(family), after.of(family), _model)
        for family in (_OUR_ROWS, _OUR_RUNS, _OUR_ERRORS)
    }
    engines: dict[Model, set[str]] = {}
    for labels, value in after.of("unified_engine_info"):
        if value > 0:
            engines.setdefault(_model(labels), set()).add(labels.get("engine", ""))
    models = sorted({*counted[_SUCCESS][1], *engines}, key=lambda model: (model[0], _number(model[1])))
    found, restarted = [], []
    for model in models:
        gained = {family: new[model] - old[model] for family, (old, new) in counted.items()}
        again = any(gain < 0 for gain in gained.values())
        if again:
            restarted.append("/".join(model))
        rows, runs = (ours[family][model] for family in (_OUR_ROWS, _OUR_RUNS))
        if not runs:
            rows, runs = gained[_ROWS], gained[_RUNS]
        found.append(
            ModelTraffic(
                *model,
                tuple(sorted(engines.get(model, ()))),
                None if again else gained[_SUCCESS] / seconds,
                None if again else _failures(before, after, model, ours[_OUR_ERRORS][model]) / seconds,
                rows / runs if runs > 0 and not again else None,
                None if again else _latency(gained),
                _lookups(after, model),
                int(_by_model(after.of("unified_profile_misses_total"))[model]),
            )
        )
    return Traffic(
        seconds,
        tuple(found),
        _gpus(after),
        _only(after, "nv_cpu_memory_used_bytes"),
        _only(after, "nv_cpu_memory_total_bytes"),
        tuple(restarted),
    )


def _failures(before: Page, after: Page, model: Model, errors: float) -> float:
    """Requests of a model that failed.

    Triton 2.51 counts those that a Python-based backend answers with an error as successes, which `errors` knows
    better; should a later one count them, it is under the reason BACKEND.
    """
    found: Counter[bool] = Counter()
    for page, sign in ((before, -1), (after, 1)):
        for labels, value in page.of(_FAILURE):
            if _model(labels) == model:
                found[labels.get("reason") == "BACKEND"] += sign * int(value)
    return found[False] + max(found[True], errors)


def _by_model(samples: Samples) -> defaultdict[Model, float]:
    """The sum of a family's samples over GPUs, reasons and processes."""
    found: defaultdict[Model, float] = defaultdict(float)
    for labels, value in samples:
        found[_model(labels)] += value
    return found


def gained_by_process(before: Samples, after: Samples, key: Callable[[Labels], K]) -> defaultdict[K, float]:
    """What counters of single processes gained: one that came meanwhile began at 0, one that went is not there.

    Args:
        key: of the sum that a counter belongs to, by its labels.
    """
    old = {frozenset(labels.items()): value for labels, value in before}
    found: defaultdict[K, float] = defaultdict(float)
    for labels, value in after:
        found[key(labels)] += max(0, value - old.get(frozenset(labels.items()), 0))
    return found


def _model(labels: Labels) -> Model:
    return labels.get("model", ""), labels.get("version", "")


def _number(version: str) -> tuple[int, str]:
    return (int(version) if version.isdecimal() else -1, version)


def _latency(gained: Mapping[str, float]) -> Latency | None:
    answered = gained[_SUCCESS]
    if answered <= 0:
        return None
    parts = {name: gained[family] / answered / 1000 for name, family in _PARTS.items()}
    return Latency(gained[_REQUEST] / answered / 1000, **parts)


def _lookups(page: Page, model: Model) -> dict[str, int]:
    found: Counter[str] = Counter()
    for labels, value in page.of("unified_cache_lookups_total"):
        if _model(labels) == model:
            found[labels.get("result", "")] += int(value)
    return dict(sorted(found.items()))


def _gpus(page: Page) -> tuple[GpuUse, ...]:
    families = ("nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes")
    busy, used, total = ({labels.get("gpu_uuid", ""): value for labels, value in page.of(name)} for name in families)
    return tuple(
        GpuUse(uuid, busy.get(uuid), _whole(used.get(uuid)), _whole(total.get(uuid)))
        for uuid in dict.fromkeys((*busy, *total))
    )


def _only(page: Page, family: str) -> int | None:
    return next((_whole(value) for _, value in page.of(family)), None)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
