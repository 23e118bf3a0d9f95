"""The life of a model, top to bottom: what the user dropped -> canonical model -> config -> engine -> runner."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend import hosts
from unified_backend.autotune import Timed, candidates, tuned
from unified_backend.batching import Batching, Verdict, prove_batching
from unified_backend.cache import Cache, Snapshot
from unified_backend.completion import ModelConfig, complete
from unified_backend.engines import Canonical, Engine, Runner, Threads, builds_slowly
from unified_backend.errors import (
    ConfigError,
    EngineError,
    SourceChangedError,
    SourceError,
    UnifiedError,
    VerificationError,
)
from unified_backend.formats import Source, find_source
from unified_backend.formats.parameters import refuse_unused
from unified_backend.forms.built import AHEAD, Builder
from unified_backend.forms.composed import composed
from unified_backend.forms.foreign import Foreign, foreign
from unified_backend.forms.ladder import find
from unified_backend.forms.lowered import lowered, mixes_rows
from unified_backend.forms.profiled import with_profiles
from unified_backend.forms.reference import ENGINES, Reference, canonical_of_onnx
from unified_backend.forms.simplified import pays, simplified
from unified_backend.gpus import Gpu
from unified_backend.lookups import Lookup, Report
from unified_backend.model_keys import batching_key
from unified_backend.repository import chosen_filename, parameters_of
from unified_backend.rungs import Ladder, Rung
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings, read_settings
from unified_backend.stages.around import Around, surroundings
from unified_backend.stages.parts import Lookup as Looked
from unified_backend.tensors import Signature
from unified_backend.variables import cache_settings, default_max_batch_size

__all__ = ["ENGINES", "Described", "Loaded", "Report", "build_only", "describe", "load", "open_cache", "threads_of"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Described:
    """A model that is understood and not yet running: what auto_complete_config needs.

    Attributes:
        canonical: what engines are built from, fragments composed onto it, simplified where that pays, in the precision
            asked for.
        around: the stages around the engine.
        lookups: outputs that are looked up in what the engine gives.
        signature: what requests bring and get.
        config: completed.
    """

    source: Source
    snapshot: Snapshot
    settings: Settings
    canonical: Canonical
    around: Around
    lookups: Mapping[str, Looked]
    signature: Signature
    batching: Batching
    config: ModelConfig
    report: Report


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model that answers.

    Attributes:
        ladder: the rungs that were looked at, in their order; the last is the one that answers.
        engine_runner: the engine alone; `runner` has the stages around it too.
        put_off: names of better engines that are not built yet, and that `build: background` has built while this one
            answers; the best first.
    """

    described: Described
    engine: str
    reason: str
    threads: Threads
    runner: Runner
    engine_runner: Runner
    ladder: tuple[Rung, ...]
    put_off: tuple[str, ...] = ()


def open_cache() -> Cache:
    """The cache of this host and user."""
    return Cache.from_settings(cache_settings())


def describe(
    label: str,
    folder: Path,
    config: Mapping[str, Any],
    cache: Cache,
    max_batch_size_given: bool = False,
    gpu: Gpu | None = None,
) -> Described:
    """Understand what lies in a version folder and complete its config.

    Args:
        label: `model/version`, for messages.
        folder: the version folder.
        config: the user's config in Triton's JSON form; `{}` is a config too.
        cache: where findings are kept.
        max_batch_size_given: the user wrote `max_batch_size`, so that 0 means 0.
        gpu: the one that the instance gets, if any.

    Raises:
        SourceError: no model, several, or one that cannot be read.
        ConfigError: the config contradicts the model, a parameter is wrong, or the cache lies in the repository.
    """
    _refuse_cache_inside(label, folder, cache)
    report = Report()
    settings = dataclasses.replace(read_settings(label, parameters_of(config, label), tuple(ENGINES)), gpu=gpu)
    if cache_settings().require_cached:
        settings = dataclasses.replace(settings, require_cached=True)
    with report.phase("detect"):
        source = find_source(label, folder, cache.store.memo, settings.source or chosen_filename(config))
        refuse_unused(source.format, settings, label)
        snapshot = Snapshot(cache.store.memo, source.files)
    lookup = Lookup(label, snapshot, settings, cache, report)
    reference = Reference(label, settings)
    with report.phase("describe"):
        around = surroundings(label, folder, settings, config)
        if source.format == "onnx":
            canonical = canonical_of_onnx(source, settings, lookup, reference)
        else:
            samples = folder.parent / "samples"
            form = foreign(source, samples, settings, around, cache.store.memo)
            canonical = find(form, lookup, reference)
            if source.format == "tflite" and int(config.get("max_batch_size") or 0) > 0:
                canonical = _in_batches(canonical, form, lookup, reference)
        lookups: Mapping[str, Looked] = {}
        if around.fragments:
            canonical, lookups = composed(canonical, around.fragments, lookup)
            reference = Reference(label, settings)
        signature = around.signature(canonical.signature, lookups)
        fixed = around.fixed(canonical.signature)
    canonical = dataclasses.replace(canonical, fixed=fixed)
    full, whole = canonical, reference
    if canonical.format == "onnx" and pays(settings, source.format == "onnx" or bool(around.fragments)):
        with report.phase("simplify"):
            made = simplified(canonical, lookup, reference)
            canonical, reference = made.canonical, made.reference
    if settings.lowers:
        with report.phase("precision"):
            cheaper = lowered(canonical, settings, around, folder.parent, lookup)
            reference = reference if cheaper.digest == canonical.digest else Reference(label, settings)
            canonical = cheaper
    with report.phase("prove"):
        judged = (canonical, reference) if mixes_rows(canonical.precision, settings) else (full, whole)
        batching = _batching(judged[0], fixed, lookup, judged[1])
    completed, notes = complete(label, config, signature, batching, default_max_batch_size(), max_batch_size_given)
    report.notes.extend((*canonical.notes, *notes))
    canonical = dataclasses.replace(canonical, max_batch_size=int(completed["max_batch_size"]))
    with report.phase("prove"):
        settings = with_profiles(canonical, settings, completed, lookup, reference)
    return Described(source, snapshot, settings, canonical, around, lookups, signature, batching, completed, report)


def _in_batches(canonical: Canonical, form: Foreign, lookup: Lookup, reference: Reference) -> Canonical:
    """The model, converted where the config asks for batches and the file as it is gives none: conversion opens them.

    What a config asks for is not to depend on whether the toolchain was there when the file was first served.
    """
    fixed = form.fixed
    if canonical.format == "onnx" or _batching(canonical, fixed, lookup, reference).verdict is Verdict.PROVEN:
        return canonical
    try:
        return find(dataclasses.replace(form, as_onnx=True), lookup, Reference(canonical.label, form.settings))
    except UnifiedError as error:
        logger.info('not converted for batches model=%s reason="%s: %s"', canonical.label, error.what, error.why)
        return canonical


def load(described: Described, cache: Cache, only: str | None = None) -> Loaded:
    """Build the engine, or take it from the cache, and load it.

    Args:
        only: the one engine to take, in place of what the settings say.

    Raises:
        EngineError: no engine of the ladder takes the model; says why each one did not.
    """
    canonical, settings, report = described.canonical, described.settings, described.report
    ladder = Ladder(canonical.label)
    put_off: list[str] = []
    chosen = only or settings.engine
    builder = _builder(described, cache)
    threads = threads_of(settings, described.config)
    fastest = None if only else _fastest(described, builder, threads, ladder)
    if fastest:
        chosen = fastest.engine
    for name, engine in ENGINES.items():
        # A source that is not ONNX has come down the ladder already, to the engine that it was judged by.
        if chosen not in ("auto", name) or (canonical.format != "onnx" and name != canonical.judged_by):
            continue
        reason = engine.unusable(settings.gpu)
        if canonical.format not in engine.accepts:
            reason = f"it takes {', '.join(sorted(engine.accepts))}, and no {canonical.format}"
        if reason:
            ladder.missed(name, reason)
            continue
        try:
            if _may_wait(engine, settings, chosen) and not builder.at_hand(engine):
                put_off.append(name)
                ladder.missed(name, "it is not in the cache: a server builds it in the background")
                continue
            with report.phase("build"):
                built = canonical.built if name == canonical.judged_by else None
                built = built or builder.built(engine)
            with report.phase("load"):
                runner = engine.load(canonical, built, settings, threads)
            if built is None and not described.snapshot.holds():
                raise SourceChangedError(canonical.label)
            if built is not None and AHEAD in built.facts:
                builder.prove(engine, runner)
            whole = runner
            if not described.around.nothing:
                with report.phase("stages"):
                    whole = _staged(described, runner, threads)
        except (EngineError, SourceError, VerificationError) as error:
            ladder.missed(name, error.why, logging.WARNING)
            continue
        cache.store.usage.remember(canonical.label, report.entries)
        why = f'parameter "engine" is "{name}"' if settings.engine == name else "first usable rung"
        why = f"the fastest: {fastest.words()}" if fastest else why
        ladder.took(name, "built in the background" if only else why)
        reason = "; ".join((why, *ladder.misses))
        return Loaded(described, name, reason, threads, whole, runner, tuple(ladder.rungs), tuple(put_off))
    if put_off:  # nothing else takes the model: there is nothing to serve it by meanwhile
        logger.warning('not built in background model=%s engine=%s reason="no other rung"', canonical.label, put_off[0])
        return load(dataclasses.replace(described, settings=dataclasses.replace(settings, build="block")), cache)
    raise EngineError(
        f"{canonical.label}: no engine takes the model",
        "; ".join(ladder.misses),
        "Correct what the reasons name, or set the parameter `engine` to another one",
    )


def build_only(described: Described, name: str, cache: Cache) -> None:
    """Have an engine built and verified in the cache, without loading it to serve.

    Raises:
        EngineError: it cannot be built.
        VerificationError: it computes something else than the model.
    """
    _builder(described, cache).made(ENGINES[name])


def _builder(described: Described, cache: Cache) -> Builder:
    canonical, settings = described.canonical, described.settings
    lookup = Lookup(canonical.label, described.snapshot, settings, cache, described.report)
    return Builder(canonical, settings, canonical.fixed, Reference(canonical.label, settings), lookup)


def _staged(described: Described, runner: Runner, threads: Threads) -> Runner:
    """The engine's runner with the stages around it; closed if one of these cannot be made."""
    size = described.canonical.max_batch_size
    try:
        return described.around.staged(
            runner, described.signature, described.lookups, size, threads.intra_op, described.settings.gpu
        )
    except UnifiedError:
        runner.close()
        raise


def _fastest(described: Described, builder: Builder, threads: Threads, ladder: Ladder) -> Timed | None:
    """The engine that the parameter `autotune` chooses, the others being told to the ladder; None without it."""
    canonical, settings, recipe = described.canonical, described.settings, described.batching.recipe
    if not settings.autotune or settings.engine != "auto":
        return None
    if settings.gpu or canonical.format != "onnx" or recipe is None:
        why = "it is for the CPU" if settings.gpu else f"the {canonical.format} model is served as it is"
        why = "no sample input could be made that runs" if recipe is None else why
        logger.warning('not autotuned model=%s reason="%s"', canonical.label, why)
        return None
    engines, others = candidates(tuple(ENGINES.values()), settings)
    with described.report.phase("autotune"):
        best, *rest = tuned(canonical, engines, builder.built, recipe, builder.fixed, threads, builder.lookup)
    for row in (*others, *rest):
        ladder.missed(row.engine, row.words())
    return None if best.reason else best


def _may_wait(engine: Engine, settings: Settings, chosen: str) -> bool:
    """Whether another rung may serve until the engine is built."""
    background = settings.build == "background" and not settings.require_cached
    return background and chosen == "auto" and builds_slowly(engine)


def _batching(canonical: Canonical, fixed: FixedDims, lookup: Lookup, reference: Reference) -> Batching:
    def make(_: Path) -> dict[str, Any]:
        return prove_batching(reference.runner(canonical), fixed).to_json()

    return Batching.from_json(lookup(batching_key(canonical.digest, fixed), make).facts)


def _refuse_cache_inside(label: str, folder: Path, cache: Cache) -> None:
    """A folder in the repository is taken for a model, and in poll mode each write to it reloads models for ever.

    Files out of a load request or an object store lie in a temporary folder, which has not the model's name: what is
    beside that one is no repository.
    """
    model, repository = folder.parents[:2]
    if model.name == label.rpartition("/")[0] and cache.root.resolve().is_relative_to(repository.resolve()):
        raise ConfigError(
            f"the cache {cache.root} lies in the model repository",
            "Triton would take it for a model, or reload for ever in poll mode",
            "Set TRITON_UNIFIED_CACHE to a folder elsewhere",
        )


def threads_of(settings: Settings, config: Mapping[str, Any]) -> Threads:
    """Threads of one instance: what the user set, else the cores divided by the model's instances."""
    instances = sum(int(group.get("count") or 1) for group in config.get("instance_group") or []) or 1
    share = max(1, hosts.cores() // instances)
    return Threads(
        intra_op=settings.intra_op_thread_count or share,
        inter_op=settings.inter_op_thread_count or (share if settings.execution_mode == "parallel" else 1),
    )
