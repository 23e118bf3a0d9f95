"""The life of a model, top to bottom: what the user dropped -> canonical model -> config -> engine -> runner."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from unified_backend import hosts
from unified_backend.cache import Cache, Entry, Key, Snapshot
from unified_backend.completion import ModelConfig, complete, fixed_dims
from unified_backend.engines import Built, Canonical, Engine, Runner, Threads
from unified_backend.engines.onnxruntime import OnnxRuntime, OnnxRuntimeRunner
from unified_backend.engines.reference import open_reference
from unified_backend.engines.sessions import library_digests
from unified_backend.errors import CacheFullError, ConfigError, EngineError, SourceChangedError, SourceError
from unified_backend.formats import Source, find_source
from unified_backend.graph.normalise import normalise
from unified_backend.model_keys import batching_key, canonical_key, engine_key
from unified_backend.repository import chosen_filename, parameters
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings, cache_settings, default_max_batch_size, read_settings
from unified_backend.tensors import Signature
from unified_backend.verification import Batching, prove_batching

__all__ = ["ENGINES", "Described", "Loaded", "Report", "describe", "load", "open_cache"]

logger = logging.getLogger(__name__)

Make = Callable[[Path], Mapping[str, Any]]

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (OnnxRuntime(),)}


@dataclasses.dataclass
class Report:
    """What a load did: seconds by phase, and whether each lookup found its entry.

    Attributes:
        seconds: phase -> seconds, in order.
        lookups: kind of entry -> `hit` on this disk, `pulled` from the remote tier, or `made`.
        entries: digests of the entries' keys.
        notes: decisions a user may want to know about.
    """

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    lookups: dict[str, str] = dataclasses.field(default_factory=dict)
    entries: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside under this name."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0) + time.monotonic() - began, 4)

    def line(self) -> str:
        """The report as key=value pairs on one line."""
        hits = (f"{kind}={origin}" for kind, origin in self.lookups.items())
        return " ".join((*hits, *(f"{phase}_s={seconds:.3f}" for phase, seconds in self.seconds.items())))


@dataclasses.dataclass(frozen=True)
class Described:
    """A model that is understood and not yet running: what auto_complete_config needs."""

    source: Source
    snapshot: Snapshot
    settings: Settings
    canonical: Canonical
    batching: Batching
    config: ModelConfig
    report: Report


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model that answers."""

    described: Described
    engine: str
    reason: str
    threads: Threads
    runner: Runner


def open_cache() -> Cache:
    """The cache of this host and user."""
    return Cache.from_settings(cache_settings())


def describe(
    label: str, folder: Path, config: Mapping[str, Any], cache: Cache, max_batch_size_given: bool = False
) -> Described:
    """Understand what lies in a version folder and complete its config.

    Args:
        label: `model/version`, for messages.
        folder: the version folder.
        config: the user's config in Triton's JSON form; `{}` is a config too.
        cache: where findings are kept.
        max_batch_size_given: the user wrote `max_batch_size`, so that 0 means 0.

    Raises:
        SourceError: no model, several, or one that cannot be read.
        ConfigError: the config contradicts the model, a parameter is wrong, or the cache lies in the repository.
    """
    _refuse_cache_inside(label, folder, cache)
    report = Report()
    settings = read_settings(label, parameters(config), tuple(ENGINES))
    if cache_settings().require_cached:
        settings = dataclasses.replace(settings, require_cached=True)
    with report.phase("detect"):
        source = find_source(label, folder, cache.store.memo, settings.source or chosen_filename(config))
        snapshot = Snapshot(cache.store.memo, source.files)
    lookup = _Lookup(label, snapshot, settings, cache, report)
    reference = _Reference(label, settings)
    with report.phase("describe"):
        canonical = _canonical(source, settings, lookup, reference)
    with report.phase("prove"):
        batching = _batching(canonical, fixed_dims(config, canonical.signature), lookup, reference)
    completed, notes = complete(
        label, config, canonical.signature, batching, default_max_batch_size(), max_batch_size_given
    )
    report.notes.extend((*canonical.notes, *notes))
    return Described(source, snapshot, settings, canonical, batching, completed, report)


def load(described: Described, cache: Cache) -> Loaded:
    """Build the engine, or take it from the cache, and load it.

    Raises:
        EngineError: no engine of the ladder takes the model; says why each one did not.
    """
    canonical, settings, report = described.canonical, described.settings, described.report
    failures: list[str] = []
    lookup = _Lookup(canonical.label, described.snapshot, settings, cache, report)
    threads = _threads(settings, described.config)
    for name, engine in ENGINES.items():
        if settings.engine not in ("auto", name):
            continue
        if reason := engine.unusable():
            failures.append(f"{name}: {reason}")
            continue
        try:
            key = engine_key(canonical.digest, engine, settings)
            with report.phase("build"):
                built = _built(key, partial(engine.build, canonical, settings), lookup)
            with report.phase("load"):
                runner = engine.load(canonical, built, settings, threads)
            if built is None and not described.snapshot.holds():
                raise SourceChangedError(canonical.label)
        except (EngineError, SourceError) as error:
            failures.append(f"{name}: {error.why}")
            logger.warning('rung failed model=%s engine=%s reason="%s"', canonical.label, name, error.why)
            continue
        cache.store.usage.remember(canonical.label, report.entries)
        why = f'parameter "engine" is "{name}"' if settings.engine == name else "first usable rung"
        return Loaded(described, name, "; ".join((why, *failures)), threads, runner)
    raise EngineError(
        f"{canonical.label}: no engine takes the model",
        "; ".join(failures),
        "Correct what the reasons name, or set the parameter `engine` to another one",
    )


class _Reference:
    """The canonical model in the reference engine, opened when first needed: a warm load never opens it."""

    def __init__(self, label: str, settings: Settings) -> None:
        self._label = label
        self._settings = settings
        self._opened: tuple[OnnxRuntimeRunner, list[str]] | None = None

    def open(self, path: Path) -> tuple[OnnxRuntimeRunner, list[str]]:
        if self._opened is None:
            self._opened = open_reference(self._label, path, self._settings)
        return self._opened


@dataclasses.dataclass(frozen=True)
class _Lookup:
    """Entries of one model, looked up in one load."""

    label: str
    snapshot: Snapshot
    settings: Settings
    cache: Cache
    report: Report

    def __call__(self, key: Key, make: Make) -> Entry:
        def from_these_bytes(folder: Path) -> Mapping[str, Any]:
            facts = make(folder)
            # The key is of the bytes that were digested: what was made of others must not be filed under it.
            libraries = library_digests(self.settings)
            if not self.snapshot.holds() or key.fields.get("custom_op_library", libraries) != libraries:
                raise SourceChangedError(self.label)
            return facts

        entry = self.cache.get_or_make(key, from_these_bytes, self.label, self.settings.require_cached)
        self.report.lookups[key.kind] = entry.origin
        self.report.entries.append(key.digest)
        return entry


def _canonical(source: Source, settings: Settings, lookup: _Lookup, reference: _Reference) -> Canonical:
    """The canonical model of a source; its entry holds a file only where the source needed a repair."""
    key = canonical_key(source, settings, lookup.snapshot.digests, lookup.cache.store.memo)

    def make(folder: Path) -> dict[str, Any]:
        changes = normalise(source.path, source.files[1:], folder)
        runner, notes = reference.open(folder / "model.onnx" if changes else source.path)
        return {"changes": changes, "notes": notes, "signature": runner.signature.to_json()}

    entry = lookup(key, make)
    path = entry.path / "model.onnx" if entry.facts["changes"] else source.path
    signature = Signature.from_json(entry.facts["signature"])
    return Canonical(source.label, path, key.digest, signature, (*entry.facts["changes"], *entry.facts["notes"]))


def _batching(canonical: Canonical, fixed: FixedDims, lookup: _Lookup, reference: _Reference) -> Batching:
    def make(_: Path) -> dict[str, Any]:
        return prove_batching(reference.open(canonical.path)[0], fixed).to_json()

    return Batching.from_json(lookup(batching_key(canonical.digest, fixed), make).facts)


def _built(key: Key, make: Make, lookup: _Lookup) -> Built | None:
    """The engine, built now or before; None where no disk has room for it: then it is made in memory."""
    try:
        entry = lookup(key, make)
        return Built(entry.path, entry.facts)
    except CacheFullError as error:
        logger.warning('engine not kept model=%s reason="%s" next="built again at every load"', lookup.label, error.why)
        return None


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


def _threads(settings: Settings, config: Mapping[str, Any]) -> Threads:
    """Threads of one instance: what the user set, else the cores divided by the model's instances."""
    instances = sum(int(group.get("count") or 1) for group in config.get("instance_group") or []) or 1
    share = max(1, hosts.cores() // instances)
    return Threads(
        intra_op=settings.intra_op_thread_count or share,
        inter_op=settings.inter_op_thread_count or (share if settings.execution_mode == "parallel" else 1),
    )
