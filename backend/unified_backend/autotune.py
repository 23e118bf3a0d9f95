"""Which engine runs a model fastest on this processor: measured once, on the model's own shapes, and kept."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unified_backend import hosts
from unified_backend.cache import Key
from unified_backend.engines import Built, Canonical, Engine, Runner, Threads, builds_slowly
from unified_backend.errors import EngineError, RequestError, SourceError, VerificationError
from unified_backend.lookups import Lookup
from unified_backend.samples import FixedDims, Recipe
from unified_backend.settings import Settings

__all__ = ["Timed", "candidates", "tuned"]

logger = logging.getLogger(__name__)

_RECIPE = 1  # raised when the same engines would be measured otherwise
_ROUNDS = 15
_BUDGET_SECONDS = 1.0  # for one batch size, of all candidates together; two rounds are run in any case
_STEERING = ("execution_mode", "enable_mem_arena", "enable_mem_pattern", "arena_shrinkage", "openvino_hint")


@dataclasses.dataclass(frozen=True)
class Timed:
    """One candidate.

    Attributes:
        milliseconds: batch size -> the quickest run; empty where it was not timed.
        ratio: to the fastest candidate, the geometric mean over the batch sizes.
        error: largest error of its outputs against the engine that the model was judged by, relative to an output's
            largest value; absolute where that is 0.
        reason: why it cannot be kept.
    """

    engine: str
    milliseconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    ratio: float = math.inf
    error: float = 0.0
    reason: str = ""

    def words(self) -> str:
        """What was found, for a person."""
        if self.reason:
            return self.reason
        times = ", ".join(
            f"{value:.3g} ms" + (f" at batch {batch}" if batch else "") for batch, value in self.milliseconds.items()
        )
        return f"{times}, {self.ratio:.2f} times the fastest, error {self.error:.1e}"


def candidates(engines: Sequence[Engine], settings: Settings) -> tuple[list[Engine], list[Timed]]:
    """The engines to time a canonical ONNX model on, and why the others that take one are not."""
    wanted, others = [], []
    for engine in engines:
        if "onnx" not in engine.accepts:
            continue
        reason = engine.unusable(settings.gpu) or (builds_slowly(engine) and "its builds take too long to be tried")
        if reason:
            others.append(Timed(engine.name, reason=reason))
        else:
            wanted.append(engine)
    return wanted, others


def tuned(
    canonical: Canonical,
    engines: Sequence[Engine],
    built: Callable[[Engine], Built | None],
    recipe: Recipe,
    fixed: FixedDims,
    threads: Threads,
    lookup: Lookup,
) -> list[Timed]:
    """The candidates, the fastest that computes what the model does first; timed now, or before on such a machine.

    Args:
        built: an engine, built and verified.
        recipe: makes samples that the model takes.

    Raises:
        NotCachedError: nothing may be measured now, and nothing was before.
    """
    settings, largest = lookup.settings, canonical.max_batch_size
    batches = sorted({1, largest}) if largest else [0]
    key = Key(
        "tuning",
        {
            "canonical": canonical.digest,
            "engines": {engine.name: engine.key_fields(settings) for engine in engines},
            "settings": {name: getattr(settings, name) for name in _STEERING},
            "verify": settings.verify,
            "tolerance": settings.tolerance,
            "threads": dataclasses.asdict(threads),
            "cores": hosts.cores(),
            "cpu": hosts.cpu_name(),
            "cpu_features": hosts.cpu_features(),
            "batches": batches,
            "recipe": [_RECIPE, dataclasses.asdict(recipe)],
            "fixed_dims": {name: {str(axis): size for axis, size in axes.items()} for name, axes in fixed.items()},
        },
    )

    def measure(_: Any) -> dict[str, Any]:
        names = ",".join(engine.name for engine in engines)
        logger.info("autotuning model=%s engines=%s batches=%s", canonical.label, names, batches)
        rows = _measured(canonical, engines, built, recipe, fixed, threads, settings, batches)
        for row in rows:
            logger.info('autotuned model=%s engine=%s result="%s"', canonical.label, row.engine, row.words())
        return {"rows": [_json(row) for row in rows]}

    found = lookup(key, measure).facts["rows"]
    rows = [Timed(**{**row, "ratio": math.inf if row["ratio"] is None else row["ratio"]}) for row in found]
    return sorted(rows, key=lambda row: row.ratio)


def _measured(
    canonical: Canonical,
    engines: Sequence[Engine],
    built: Callable[[Engine], Built | None],
    recipe: Recipe,
    fixed: FixedDims,
    threads: Threads,
    settings: Settings,
    batches: Sequence[int],
) -> list[Timed]:
    runners: dict[str, Runner] = {}
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    for engine in engines:
        try:
            made = built(engine)
            verified = made.facts.get("verified", []) if made else []
            errors[engine.name] = max(map(_error, verified), default=0.0)
            if not all(row["passed"] for row in verified):
                failed[engine.name] = f"its outputs are off by {errors[engine.name]:.1e} of their largest values"
                continue
            runners[engine.name] = engine.load(canonical, made, settings, threads)
        except (EngineError, SourceError, VerificationError) as error:
            failed[engine.name] = error.why
    times: dict[str, dict[str, float]] = {name: {} for name in runners}
    for batch in batches:
        for name, seconds in _times(runners, recipe, fixed, batch, failed).items():
            times[name][str(batch)] = round(1e3 * seconds, 4)
    for runner in runners.values():
        runner.close()
    kept = {name: found for name, found in times.items() if name not in failed}
    best = {batch: min(found[batch] for found in kept.values()) for batch in map(str, batches)} if kept else {}
    rows = [Timed(name, found, _mean(found, best), errors[name]) for name, found in kept.items()]
    return rows + [Timed(name, reason=reason) for name, reason in failed.items()]


def _error(row: Mapping[str, Any]) -> float:
    relative = float(row["max_rel"])
    return relative if math.isfinite(relative) else float(row["max_abs"])


def _times(
    runners: Mapping[str, Runner], recipe: Recipe, fixed: FixedDims, batch: int, failed: dict[str, str]
) -> dict[str, float]:
    """Seconds of each runner's quickest run; they take turns, so that what else the machine does meets them all."""
    feeds = {name: recipe.feeds(runner.signature, fixed, batch or None) for name, runner in runners.items()}
    outputs = {name: [spec.name for spec in runner.signature.outputs] for name, runner in runners.items()}
    found: dict[str, list[float]] = {name: [] for name in runners if name not in failed}
    began, rounds = time.monotonic(), 0
    while rounds < _ROUNDS and (rounds < 3 or time.monotonic() - began < _BUDGET_SECONDS):
        for name in list(found):
            try:
                start = time.perf_counter()
                runners[name].run(feeds[name], outputs[name])
                found[name].append(time.perf_counter() - start)
            except (EngineError, RequestError) as error:
                failed[name] = f"at batch {batch}: {error.why}"
                del found[name]
        rounds += 1
    return {name: min(seconds) for name, seconds in found.items()}


def _mean(times: Mapping[str, float], best: Mapping[str, float]) -> float:
    """The geometric mean of the ratios."""
    return math.exp(sum(math.log(times[batch] / best[batch]) for batch in best) / len(best))


def _json(row: Timed) -> dict[str, Any]:
    """Plain JSON values: one that was not timed has no ratio."""
    return {**dataclasses.asdict(row), "ratio": None if row.reason else round(row.ratio, 4)}
