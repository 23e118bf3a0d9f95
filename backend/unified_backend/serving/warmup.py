"""Runs a model before its first request, so that this is not the slow one, and measures once how best to execute."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend import __version__, hosts
from unified_backend.cache import Cache, Key
from unified_backend.engines.profiles import dims_inside
from unified_backend.errors import EngineError, UnifiedError
from unified_backend.loading import Loaded
from unified_backend.serving.executor import Executor, Plan
from unified_backend.tensors import Array

__all__ = ["warm_up"]

logger = logging.getLogger(__name__)

_COMPARED_BATCH = 4  # requests that loop and concatenation are compared with
_BUDGET_SECONDS = 0.5  # for that comparison
_ROUNDS = 15
_CLEARLY = 0.9  # of the loop's time: joined requests also wait for one another, which is not measured here
_SLOW_SECONDS = 0.005  # asking whether a request was cancelled costs about 0.1 ms: under 2 % from here on
_AFFORDABLE_SECONDS = 0.1  # the sizes chosen by default take about this long together, at most


def warm_up(loaded: Loaded, cache: Cache) -> Plan:
    """Run the sample inputs at the batch sizes that matter, and choose how requests are executed.

    What was measured for this engine on such a machine is an entry of the cache, and not measured again. A model for
    which no sample could be made is not warmed up; a sample that fails is logged and does no harm.
    """
    described = loaded.described
    config, settings, report = described.config, described.settings, described.report
    runner, canonical = loaded.engine_runner, described.canonical
    served = tuple(tensor["name"] for tensor in config["output"])
    outputs = served if runner is loaded.runner else tuple(spec.name for spec in runner.signature.outputs)
    largest = int(config["max_batch_size"])
    plan = Plan(served, largest, concatenate=settings.batching == "concatenate" and largest > 1, slow=False)
    recipe = described.batching.recipe
    if recipe is None or settings.warm_up == ():
        return plan
    fixed = dims_inside(settings.profiles, canonical.fixed, largest > 0)

    def feeds(batch: int) -> dict[str, Array]:
        return recipe.feeds(runner.signature, fixed, batch if largest else None)

    def measure(_: Path) -> dict[str, bool]:
        concatenate = plan.concatenate
        if largest > 1 and settings.batching == "auto" and runner is loaded.runner and _numbers_only(loaded):
            requests = [feeds(1)] * min(_COMPARED_BATCH, largest)
            concatenate = _concatenating_wins(loaded, plan, requests)
        return {"concatenate": concatenate, "slow": one > _SLOW_SECONDS}

    try:
        runner.run(feeds(1), outputs)
        one = _seconds(lambda: runner.run(feeds(1), outputs))
        for batch in _batch_sizes(settings.warm_up, config, largest, one):
            runner.run(feeds(batch), outputs)
        entry = cache.get_or_make(_plan_key(loaded, feeds(1)), measure, described.source.label)
        report.lookups["plan"] = entry.origin
        return dataclasses.replace(plan, concatenate=entry.facts["concatenate"], slow=entry.facts["slow"])
    except UnifiedError as error:
        logger.warning('warm-up stopped model=%s reason="%s"', described.source.label, error)
        return plan


def _plan_key(loaded: Loaded, sample: Mapping[str, Array]) -> Key:
    """What the choice was measured with: the engine, the machine, the shapes and all that steers the executor."""
    config, settings = loaded.described.config, loaded.described.settings
    return Key(
        "plan",
        {
            "canonical": loaded.described.canonical.digest,
            "engine": loaded.engine,
            "settings": {
                name: value if value is None or isinstance(value, (bool, int, float, str)) else list(map(str, value))
                for name, value in dataclasses.asdict(settings).items()
                # Of libraries the canonical model's key has the bytes; here is their path.
                if name not in ("source", "build", "require_cached", "custom_op_library", "gpu", "tensorrt")
            },
            "tensorrt": dataclasses.asdict(dataclasses.replace(settings.tensorrt, plugins=())),
            "threads": dataclasses.asdict(loaded.threads),
            "gpu": settings.gpu.name if settings.gpu else None,
            "cores": hosts.cores(),
            "cpu": hosts.cpu_name(),
            "cpu_features": hosts.cpu_features(),
            "requests": min(_COMPARED_BATCH, int(config["max_batch_size"])),
            "outputs": [tensor["name"] for tensor in config["output"]],
            "sample": {name: list(array.shape) for name, array in sample.items()},
            "backend": __version__,
        },
    )


def _numbers_only(loaded: Loaded) -> bool:
    """Whether no tensor needs a conversion, which joining would not save."""
    signature = loaded.runner.signature
    return not any(spec.dtype in ("STRING", "BYTES", "BF16") for spec in (*signature.inputs, *signature.outputs))


def _batch_sizes(asked: Sequence[int] | None, config: Mapping[str, Any], largest: int, one: float) -> list[int]:
    """What to run beside batch 1: what the user asked for, else the preferred sizes and the largest, if affordable."""
    if asked is not None:
        return [size for size in asked if size <= largest]
    preferred = (config.get("dynamic_batching") or {}).get("preferred_batch_size") or []
    chosen, spent = [], 0.0
    for size in sorted({*map(int, preferred), largest} - {0, 1}):
        spent += one * size
        if spent < _AFFORDABLE_SECONDS:
            chosen.append(size)
    return chosen


def _concatenating_wins(loaded: Loaded, plan: Plan, requests: Sequence[dict[str, Array]]) -> bool:
    """Whether the executor answers these requests clearly quicker as one batch than one by one.

    The executor's own work counts: for a tiny model it is more than the engine's.
    """
    stand_ins = [_Request(feeds, plan.outputs) for feeds in requests]
    loop, joined = (
        Executor(_PbUtils, loaded.runner, dataclasses.replace(plan, concatenate=choice), Counter(), Counter())
        for choice in (False, True)
    )
    pairs: list[tuple[float, float]] = []
    began = time.monotonic()
    while len(pairs) < _ROUNDS and (len(pairs) < 2 or time.monotonic() - began < _BUDGET_SECONDS):
        pairs.append((_seconds(lambda: loop.execute(stand_ins)), _seconds(lambda: joined.execute(stand_ins))))
    return min(pair[1] for pair in pairs) < _CLEARLY * min(pair[0] for pair in pairs)


class _Tensor:
    """Stands in for `pb_utils.Tensor`."""

    def __init__(self, name: str, array: Array) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        return self._array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class _Request:
    """Stands in for `pb_utils.InferenceRequest`."""

    def __init__(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> None:
        self._tensors = [_Tensor(name, array) for name, array in feeds.items()]
        self._outputs = list(outputs)

    def inputs(self) -> list[_Tensor]:
        return self._tensors

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def is_cancelled(self) -> bool:
        return False


class _TritonError:
    """Stands in for `pb_utils.TritonError`; a request that fails ends the rehearsal."""

    INVALID_ARG = INTERNAL = CANCELLED = 0

    def __init__(self, message: str, _: int) -> None:
        raise EngineError("the sample requests failed", message, "The model is served without them")


class _PbUtils:
    """Stands in for Triton's module, which exists only inside the stub; `check` rehearses without one."""

    Tensor = _Tensor
    TritonError = _TritonError

    @staticmethod
    def InferenceResponse(output_tensors: list[_Tensor]) -> list[_Tensor]:  # noqa: N802 - Triton's name
        return output_tensors


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
