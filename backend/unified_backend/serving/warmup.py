"""Runs a model before its first request, so that this is not the slow one, and measures how best to execute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unified_backend.completion import fixed_dims
from unified_backend.engines import Runner
from unified_backend.errors import UnifiedError
from unified_backend.loading import Loaded
from unified_backend.serving.executor import Plan
from unified_backend.tensors import Array

__all__ = ["warm_up"]

logger = logging.getLogger(__name__)

_COMPARED_BATCH = 4  # requests that loop and concatenation are compared with
_BUDGET_SECONDS = 0.5  # for that comparison
_ROUNDS = 7
_SLOW_SECONDS = 0.005  # asking whether a request was cancelled costs about 0.1 ms: under 2 % from here on
_AFFORDABLE_SECONDS = 0.5  # the sizes chosen by default take about this long together, at most


def warm_up(loaded: Loaded) -> Plan:
    """Run the sample inputs at the batch sizes that matter, and choose how requests are executed.

    A model for which no sample could be made is not warmed up; a sample that fails is logged and does no harm.
    """
    described = loaded.described
    config, settings = described.config, described.settings
    outputs = tuple(tensor["name"] for tensor in config["output"])
    largest = int(config["max_batch_size"])
    plan = Plan(outputs, largest, concatenate=settings.batching == "concatenate" and largest > 1, slow=False)
    recipe = described.batching.recipe
    if recipe is None or settings.warm_up == ():
        return plan
    fixed = fixed_dims(config, described.canonical.signature)

    def feeds(batch: int) -> dict[str, Array]:
        return recipe.feeds(loaded.runner.signature, fixed, batch if largest else None)

    try:
        one = _seconds(lambda: loaded.runner.run(feeds(1), outputs))
        for batch in _batch_sizes(settings.warm_up, config, largest, one):
            loaded.runner.run(feeds(batch), outputs)
        if largest > 1 and settings.batching == "auto":
            compared = min(_COMPARED_BATCH, largest)
            concatenate = _concatenating_wins(loaded.runner, [feeds(1) for _ in range(compared)], outputs)
            return Plan(outputs, largest, concatenate, slow=one > _SLOW_SECONDS)
        return Plan(outputs, largest, plan.concatenate, slow=one > _SLOW_SECONDS)
    except UnifiedError as error:
        logger.warning('warm-up stopped model=%s reason="%s"', described.source.label, error)
        return plan


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


def _concatenating_wins(runner: Runner, requests: Sequence[dict[str, Array]], outputs: Sequence[str]) -> bool:
    """Whether one run of the joined requests, joining and splitting included, is quicker than a run for each."""

    def loop() -> None:
        for feeds in requests:
            runner.run(feeds, outputs)

    def concatenated() -> None:
        joined = {name: np.concatenate([feeds[name] for feeds in requests]) for name in requests[0]}
        for array in runner.run(joined, outputs):
            np.split(array, len(requests))

    pairs: list[tuple[float, float]] = []
    began = time.monotonic()
    while len(pairs) < _ROUNDS and (len(pairs) < 2 or time.monotonic() - began < _BUDGET_SECONDS):
        pairs.append((_seconds(loop), _seconds(concatenated)))
    return min(pair[1] for pair in pairs) < min(pair[0] for pair in pairs)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
