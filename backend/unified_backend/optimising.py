"""What optimisation makes of a model, step by step: the simplified graph, ONNX Runtime's own, and their answers."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend import hosts
from unified_backend.cache import Cache
from unified_backend.engines import Built, Canonical, Threads
from unified_backend.engines.onnxruntime import OnnxRuntime
from unified_backend.engines.reference import open_reference
from unified_backend.formats.onnx import Onnx, read_model
from unified_backend.forms.judging import COMPUTED_IN
from unified_backend.forms.lowered import lowered, sensitivity
from unified_backend.forms.reference import Reference
from unified_backend.forms.simplified import TOLERANCE, simplified
from unified_backend.graph.operators import census, changes, foreign
from unified_backend.loading import Described, describe
from unified_backend.lookups import Lookup
from unified_backend.repository import our_config, version_folder, versions
from unified_backend.settings import Settings, read_settings
from unified_backend.verification import Compared, Sample, samples_of, verify

__all__ = ["Optimised", "optimise"]

_ENGINE = OnnxRuntime()
_LOWERING = ("precision", "exclude", "calibration", "calibration_method")  # parameters of what comes after


@dataclasses.dataclass(frozen=True)
class Optimised:
    """A portable model in a file, its external data beside it, and the report of how it came about."""

    path: Path
    report: dict[str, Any]


def optimise(model: Path, given: Mapping[str, str], cache: Cache, with_layers: bool = False) -> Optimised:
    """Optimise a model as far as its parameters `graph_optimization` and `precision` say.

    Args:
        model: a file, a folder that holds one, or a model's directory in a repository, whose config counts then.
        given: parameters of config.pbtxt, in place of those of the config.
        cache: what it holds is not made again, and what is made stays there for loads.
        with_layers: also quantise each layer alone, and say what that costs.

    Returns:
        the model, and a report of JSON values: `model`, `format`, `level`, `notes`; `layers`, the worst first, each
        with `layer`, `operator`, `max_rel`, `cosine`; and `steps`, each with `name`, `portable`, `nodes`, `operators`,
        `initializers`, `bytes`, `seconds`, and, but for the first, the `changes` from the step before, `outside_onnx`:
        operators that not every engine has, and `verified`: the answers compared with those of the first, or of the
        lowered model.

    Raises:
        SourceError: no model, several, or one that cannot be read.
        ConfigError: a parameter is wrong.
        EngineError, ConversionError, ToolchainError: it is not ONNX, and cannot be converted to it.
    """
    described, folder, lowering = _described(model, given, cache)
    canonical, settings = described.canonical, described.settings
    lookup = Lookup(canonical.label, described.snapshot, settings, cache, described.report)
    reference = Reference(canonical.label, settings)
    samples = samples_of(reference.runner(canonical), canonical.fixed)
    steps = [_step("canonical", canonical.path, 0.0)]
    if settings.graph_optimization != "none":
        if described.source.format == "onnx" or described.around.fragments:
            made = simplified(canonical, lookup, reference)
            path, seconds, note = made.canonical.path, made.seconds, made.note or "there is nothing to simplify"
        else:
            path, seconds, note = canonical.path, 0.0, "the toolchain that wrote it has simplified it"
        described.report.notes.append(note)
        if path != canonical.path:
            runner = open_reference(canonical.label, path, settings)[0]
            rows = verify(runner, samples, TOLERANCE)
            runner.close()
            steps.append(_step("simplified", path, seconds, canonical.path, rows))
            canonical = dataclasses.replace(canonical, path=path, digest=made.canonical.digest)
    layers: list[Mapping[str, Any]] = []
    if lowering.lowers:
        names = {name: getattr(lowering, name) for name in _LOWERING}
        settings = dataclasses.replace(settings, **names)
        lookup = dataclasses.replace(lookup, settings=settings)
        if with_layers:
            layers = sensitivity(canonical, settings, described.around, folder.parent, lookup)
        lower = lowered(canonical, settings, described.around, folder.parent, lookup)
        described.report.notes.extend(lower.notes)
        if lower.digest != canonical.digest:
            steps.append(_lowered_step(lower, canonical.path, cache))
            canonical = lower
            samples = samples_of(Reference(canonical.label, settings).runner(canonical), canonical.fixed)
    if settings.graph_optimization != "none":
        steps.append(_engine_step(canonical, settings, samples))
    notes = list(dict.fromkeys(described.report.notes))
    if not samples:
        notes.append("answers not compared: no sample input could be made that runs")
    report = {
        "model": canonical.label,
        "format": described.source.format,
        "level": settings.graph_optimization,
        "notes": notes,
        "steps": steps,
        "layers": layers,
        "passed": all(row["passed"] for step in steps for row in step["verified"]),
    }
    return Optimised(canonical.path, report)


def _described(model: Path, given: Mapping[str, str], cache: Cache) -> tuple[Described, Path, Settings]:
    """The model as it came, on the way that ends in ONNX whatever engine its config prefers.

    Returns:
        its version folder, and settings that say what is asked for of its precision, too.
    """
    if model.is_dir() and versions(model):
        label, folder = version_folder(model, None)
        config = our_config(label, model)
    else:
        label, folder = model.name, model if model.is_dir() else model.parent
        config = {} if model.is_dir() else _with_parameters({}, {"source": model.name})
    config = _with_parameters(config, {**given, "engine": _ENGINE.name})
    parameters = config["parameters"]
    lowering = {name: parameters.pop(name)["string_value"] for name in _LOWERING if name in parameters}
    return describe(label, folder, config, cache), folder, read_settings(label, lowering, ())


def _with_parameters(config: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    added = {name: {"string_value": value} for name, value in given.items()}
    return {**config, "parameters": {**(config.get("parameters") or {}), **added}}


def _engine_step(canonical: Canonical, settings: Settings, samples: Sequence[Sample]) -> dict[str, Any]:
    """ONNX Runtime's own graph: what the CPU's rung runs."""
    with tempfile.TemporaryDirectory(prefix="triton-unified-") as scratch:
        folder, began = Path(scratch), time.monotonic()
        facts = _ENGINE.build(canonical, settings, folder)
        seconds = time.monotonic() - began
        runner = _ENGINE.load(canonical, Built(folder, facts), settings, Threads(hosts.cores()))
        rows = verify(
            runner, samples, settings.tolerance, computed_in=COMPUTED_IN.get(canonical.precision or "", "FP32")
        )
        runner.close()
        name = f"{_ENGINE.name} {settings.graph_optimization}"
        return _step(name, next(folder.glob("*.onnx")), seconds, canonical.path, rows)


def _lowered_step(lower: Canonical, before: Path, cache: Cache) -> dict[str, Any]:
    """The model in the precision, compared when it was made."""
    manifest = next(entry.manifest for entry in cache.store.entries() if entry.manifest.key.digest == lower.digest)
    step = _step(f"precision {lower.precision}", lower.path, float(manifest.made["seconds"]), before)
    return {**step, "verified": manifest.facts["verified"]}


def _step(
    name: str, path: Path, seconds: float, before: Path | None = None, rows: Sequence[Compared] = ()
) -> dict[str, Any]:
    model = read_model(path)
    operators = census(model)
    beside = [path.parent / each for each in Onnx().companions(path)]
    earlier = read_model(before) if before else None
    new = foreign(operators) - foreign(census(earlier)) if earlier else set()
    return {
        "name": name,
        "portable": not new,
        "nodes": operators.total(),
        "operators": dict(operators.most_common()),
        "initializers": len(model.graph.initializer),
        "bytes": sum(file.stat().st_size for file in (path, *beside)),
        "seconds": round(seconds, 3),
        "changes": dataclasses.asdict(changes(earlier, model)) if earlier else {},
        "outside_onnx": sorted(foreign(operators)),
        "verified": [row.to_json() for row in rows],
    }
