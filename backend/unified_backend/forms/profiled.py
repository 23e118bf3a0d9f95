"""The optimization profiles of a model whose config is complete, for the rungs that build for shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.cache import Key
from unified_backend.engines import Canonical
from unified_backend.engines.profiles import RECIPE, Ranges, derive, dims_inside, fitting, ranges_of, shapes_of
from unified_backend.errors import ConfigError, EngineError
from unified_backend.forms.reference import ENGINES, PROFILED, Reference
from unified_backend.lookups import Lookup
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings
from unified_backend.verification import Sample, samples_of

__all__ = ["profiles_wanted", "samples_within", "with_profiles"]


def with_profiles(
    canonical: Canonical, settings: Settings, config: Mapping[str, Any], lookup: Lookup, reference: Reference
) -> Settings:
    """The settings with the profiles that engines are built for; () where none of those engines can be used.

    Args:
        canonical: with the dims and the max_batch_size of the completed config.
        config: completed.

    Raises:
        ConfigError: the parameter `shapes` does not fit the model.
    """
    written = settings.tensorrt.shapes
    usable = canonical.format == "onnx" and profiles_wanted(settings)
    if not usable and not written:
        return settings
    batched = canonical.max_batch_size > 0
    ranges = _ranges(canonical, batched, lookup, reference) if usable else {}
    preferred = (config.get("dynamic_batching") or {}).get("preferred_batch_size") or []
    try:
        profiles = derive(
            canonical.label,
            canonical.signature,
            canonical.fixed,
            canonical.max_batch_size,
            [int(size) for size in preferred],
            ranges,
            written,
        )
    except ConfigError:
        if written or settings.engine != "auto":
            raise
        return settings  # the engines say that they have no profile, and the next rung is tried
    return dataclasses.replace(settings, profiles=profiles)


def profiles_wanted(settings: Settings) -> bool:
    """Whether one of the engines that build for profiles may be taken."""
    gpu = settings.gpu
    if gpu is None:
        return False
    if gpu.index < 0:  # one that is not here is built for, not used
        return True
    return any(settings.engine in ("auto", name) and not ENGINES[name].unusable(gpu) for name in PROFILED)


def samples_within(settings: Settings, canonical: Canonical, fixed: FixedDims, reference: Reference) -> list[Sample]:
    """Samples of the shapes that an engine was built for: on others the next rung would be judged in its place.

    Raises:
        EngineError: the reference answers none of such shapes.
    """
    dims = dims_inside(settings.profiles, fixed, canonical.max_batch_size > 0)
    found = samples_of(reference.runner(canonical), dims)
    within = [one for one in found if fitting(settings.profiles, shapes_of(one.feeds)) is not None]
    if not within:
        raise EngineError(
            f"{canonical.label}: the engine cannot be verified",
            "the model answers no sample of the shapes that it was built for",
            "Name shapes that the model takes with the parameter `shapes`",
        )
    return within


def _ranges(canonical: Canonical, batched: bool, lookup: Lookup, reference: Reference) -> Ranges:
    key = Key(
        "ranges",
        {
            "canonical": canonical.digest,
            "fixed_dims": {
                name: {str(axis): size for axis, size in row.items()} for name, row in canonical.fixed.items()
            },
            "batched": batched,
            "recipe": RECIPE,
        },
    )

    def make(_: Path) -> dict[str, Any]:
        found = ranges_of(reference.runner(canonical), canonical.fixed, batched)
        return {name: {str(axis): list(span) for axis, span in row.items()} for name, row in found.items()}

    facts = lookup(key, make).facts
    return {name: {int(axis): tuple(span) for axis, span in row.items()} for name, row in facts.items()}
