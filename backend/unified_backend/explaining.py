"""What a load of a model would find in the cache, and why not: its keys now, worked out without building anything."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

from unified_backend.cache import Cache, Key, Snapshot
from unified_backend.cache.catalogue import maker_of
from unified_backend.cache.explaining import Difference, closest, differences
from unified_backend.cache.manifest import DamagedError, Manifest
from unified_backend.cache.remote import RemoteError
from unified_backend.ensembles.opening import members
from unified_backend.formats import Source, find_source
from unified_backend.formats.parameters import refuse_unused
from unified_backend.formats.pipeline import FORMAT
from unified_backend.forms.composed import key_of_composed
from unified_backend.forms.converted import key_of_conversion, key_of_converted
from unified_backend.forms.direct import key_of_direct
from unified_backend.forms.foreign import Foreign, foreign
from unified_backend.forms.ladder import ways
from unified_backend.forms.lowered import given, key_of_lowered, mixes_rows, precisions
from unified_backend.forms.reference import ENGINES, PROFILED
from unified_backend.forms.simplified import key_of_simplified, pays
from unified_backend.gpus import gpu_of
from unified_backend.model_keys import batching_key, canonical_key, engine_key
from unified_backend.repository import chosen_filename, our_config, parameters_of, version_folder
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings, read_settings
from unified_backend.stages.around import Around, surroundings
from unified_backend.tensors import Signature
from unified_backend.toolchains.catalogue import Toolchain

__all__ = ["Explained", "Explanation", "explain_model"]

logger = logging.getLogger(__name__)

_REMOTE_CANDIDATES = 1000  # manifests of a kind that are looked at; each is one small request
_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Explained:
    """One entry that a load asks for.

    Attributes:
        name: the entry's kind, with the engine's name where there is one (`engine onnxruntime`).
        key: None where it cannot be known before another entry is there.
        state: `cached` here; in the `remote` tier; `damaged` here; `removed`: it was here when the model was last
            loaded; `missing`; `unknown`.
        reason: why so, in words, where there is more to say than the state.
        closest: of a missing one, the entry that is most like it.
        differences: from the closest one to this key.
    """

    name: str
    key: Key | None
    state: Literal["cached", "remote", "damaged", "removed", "missing", "unknown"]
    reason: str = ""
    closest: Manifest | None = None
    differences: Sequence[Difference] = ()


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a load of one model version would find."""

    source: Source
    entries: Sequence[Explained]


def explain_model(label: str, folder: Path, config: Mapping[str, Any], cache: Cache) -> Explanation:
    """The keys that a load would look up now, and what is there under each.

    Args:
        label: `model/version`.
        folder: the version folder.
        config: as Triton would hand it over.

    Raises:
        SourceError: no model, several, or one that cannot be read.
        ConfigError: a parameter is wrong.
    """
    settings = dataclasses.replace(
        read_settings(label, parameters_of(config, label), tuple(ENGINES)), gpu=gpu_of(config)
    )
    source = find_source(label, folder, cache.store.memo, settings.source or chosen_filename(config))
    refuse_unused(source.format, settings, label)
    if source.format == FORMAT:
        return Explanation(source, [entry for model in members(folder, label) for entry in _of_member(model, cache)])
    around = surroundings(label, folder, settings, config)
    lookup = _Lookup(label, cache)
    snapshot = Snapshot(cache.store.memo, source.files)
    if source.format != "onnx":
        other = foreign(source, folder.parent / "samples", settings, around, cache.store.memo)
        return Explanation(source, _entries_of_other(other, around, folder.parent, cache, lookup))
    canonical = canonical_key(source, settings, snapshot.digests, cache.store.memo)
    entry = lookup.explained("canonical", canonical)
    after = _entries_after(canonical, settings, around, folder.parent, lookup, onnx=True)
    return Explanation(source, [entry, *after])


def _of_member(model: Path, cache: Cache) -> Iterator[Explained]:
    """The entries of a model of a pipeline, which say whose they are."""
    label, folder = version_folder(model, None)
    for entry in explain_model(label, folder, our_config(label, model), cache).entries:
        yield dataclasses.replace(entry, name=f"{entry.name} of {model.name}")


def _entries_of_other(
    other: Foreign, around: Around, model_dir: Path, cache: Cache, lookup: _Lookup
) -> list[Explained]:
    """Entries of a source that is not ONNX: of the first way whose entries are there, which a load takes; else of all,
    of which it takes the first that works.
    """
    entries: list[Explained] = []
    for way in ways(other):
        if isinstance(way, Toolchain):
            made = lookup.explained("conversion", key_of_conversion(other, way))
            key = key_of_converted(other, way, cache.store.memo)
            failure = (lookup.facts(made.key) or {}).get("failure") if made.key else None
            if failure:
                reason = f"it failed, and is not tried again; a load goes on to the next engine: {failure}"
                entries.append(dataclasses.replace(made, reason=reason))
                continue
            mine = [made, lookup.explained("canonical", key)]
            after = partial(_entries_after, key, other.settings, around, model_dir, lookup)
        else:
            key = key_of_direct(other, way)
            mine = [lookup.explained(f"direct {way.name}", key)]
            after = partial(_batching_of, key, around, lookup)
        if all(entry.state in ("cached", "remote") for entry in mine):
            return [*mine, *after()]
        entries += mine
    return entries


def _entries_after(
    canonical: Key, settings: Settings, around: Around, model_dir: Path, lookup: _Lookup, onnx: bool = False
) -> Iterator[Explained]:
    """What a load looks up when it has the canonical model: what is made of it, and the first usable engine.

    Args:
        onnx: the source is ONNX.
    """
    if around.fragments:
        canonical = key_of_composed(canonical.digest, around.fragments)
        yield lookup.explained("composed", canonical)
    facts = lookup.facts(canonical)
    fixed = around.fixed(Signature.from_json(facts["signature"])) if facts else None
    full = canonical
    if pays(settings, onnx or bool(around.fragments)):
        canonical, entries = _simplified(canonical, fixed, lookup)
        yield from entries
    if settings.lowers:
        canonical, entries = _lowered(canonical, settings, around, fixed, model_dir, lookup)
        yield from entries
    mixed = mixes_rows(canonical.fields.get("precision"), settings)
    yield _batching(canonical if mixed else full, fixed, lookup)
    for name, engine in ENGINES.items():
        if settings.engine not in ("auto", name) or "onnx" not in engine.accepts:
            continue
        if reason := engine.unusable(settings.gpu) or "":
            if settings.engine == name:
                yield Explained(f"engine {name}", None, "unknown", reason)
            continue
        if name in PROFILED:
            reason = "it depends on the optimization profiles, which follow from the completed config"
            yield Explained(f"engine {name}", None, "unknown", reason)
        else:
            yield lookup.explained(f"engine {name}", engine_key(canonical.digest, engine, settings))
        break  # the rungs below it are built only where it fails


def _simplified(canonical: Key, fixed: FixedDims | None, lookup: _Lookup) -> tuple[Key, list[Explained]]:
    """The entry of the simplified model, and the key of the model from there on."""
    if fixed is None:
        return canonical, [_untold("simplified")]
    key = key_of_simplified(canonical.digest, fixed)
    found = lookup.facts(key)
    return (canonical if found and found["why"] is not None else key), [lookup.explained("simplified", key)]


def _lowered(
    canonical: Key,
    settings: Settings,
    around: Around,
    fixed: FixedDims | None,
    model_dir: Path,
    lookup: _Lookup,
) -> tuple[Key, list[Explained]]:
    """The entries of the model in the precisions that are tried, and the key of the model from there on."""
    if fixed is None:
        return canonical, [_untold("precision")]
    samples, calibration = given(lookup.label, settings, model_dir, lookup.memo)
    entries = []
    for precision in precisions(settings, bool(calibration)):
        key = key_of_lowered(canonical.digest, precision, settings, around, fixed, samples, calibration)
        entries.append(lookup.explained("precision", key))
        found = lookup.facts(key)
        if found is None or not found["failure"]:
            return (canonical if found and found["already"] else key), entries
    return canonical, entries


def _batching(canonical: Key, fixed: FixedDims | None, lookup: _Lookup) -> Explained:
    return _untold("batching") if fixed is None else lookup.explained("batching", batching_key(canonical.digest, fixed))


def _batching_of(direct: Key, around: Around, lookup: _Lookup) -> Iterator[Explained]:
    """Of a source that an engine takes as it is."""
    facts = lookup.facts(direct)
    yield _batching(direct, around.fixed(Signature.from_json(facts["signature"])) if facts else None, lookup)


def _untold(name: str) -> Explained:
    reason = "it depends on the model's inputs, which the canonical entry will tell"
    return Explained(name, None, "unknown", reason)


class _Lookup:
    """Entries of one model, looked at and not touched."""

    def __init__(self, label: str, cache: Cache) -> None:
        self.label, self.memo = label, cache.store.memo
        self._store = cache.store
        self._remote = cache.remote
        self._used = {
            digest: use.unix_time for use in cache.store.usage.uses() if use.label == label for digest in use.entries
        }
        self._here = [entry.manifest for entry in cache.store.entries()]

    def explained(self, name: str, key: Key) -> Explained:
        """What is there under a key."""
        local = self._local(key)
        if isinstance(local, Manifest):
            return Explained(name, key, "cached")
        if self._there(key):
            return Explained(name, key, "remote", f"here it is damaged: {local}" if local else "")
        if local:
            return Explained(name, key, "damaged", local)
        if used := self._used.get(key.digest):
            bad = self._store.last_set_aside(key.digest) > used
            what = "set aside as damaged or wrongly signed" if bad else "evicted or removed"
            return Explained(name, key, "removed", f"the last load used it, and it was {what} since")
        found = self._closest(key)
        return Explained(name, key, "missing", "", found, differences(found.key, key) if found else ())

    def facts(self, key: Key) -> Mapping[str, Any] | None:
        """What the maker of an entry found out, from wherever the entry is."""
        local = self._local(key)
        found = local if isinstance(local, Manifest) else self._there(key)
        return found.facts if found else None

    def _local(self, key: Key) -> Manifest | str | None:
        """The entry on this disk, or how it is damaged."""
        place = self._store.place(key)
        try:
            return self._store.check(place, self._store.memo.digest)
        except DamagedError as error:
            return str(error)
        except OSError as error:
            return f"it cannot be read: {error.strerror}" if place.exists() else None

    def _there(self, key: Key) -> Manifest | None:
        """The manifest in the remote tier, or None; a store that fails is not asked again."""
        if self._remote is None:
            return None
        try:
            return self._remote.manifest(key.kind, key.digest)
        except RemoteError as error:
            self._give_up(error)
            return None

    def _closest(self, key: Key) -> Manifest | None:
        found = closest(key, self._here, self._used, self._made_for)
        if found and (found.key.digest in self._used or self._made_for(found)):
            return found
        return closest(key, (*self._here, *self._elsewhere(key.kind)), self._used, self._made_for)

    def _elsewhere(self, kind: str) -> list[Manifest]:
        """Manifests of a kind in the remote tier: on a host that has nothing yet, these tell why it hits nothing."""
        if self._remote is None:
            return []
        remote = self._remote
        try:
            listed = remote.keys()
            digests = [digest for found, digest in listed if found == kind][:_REMOTE_CANDIDATES]
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                return [found for found in pool.map(lambda digest: remote.manifest(kind, digest), digests) if found]
        except RemoteError as error:
            self._give_up(error)
            return []

    def _give_up(self, error: RemoteError) -> None:
        logger.warning('remote cache not asked url=%s reason="%s"', self._remote and self._remote.url, error)
        self._remote = None

    def _made_for(self, manifest: Manifest) -> bool:
        return maker_of(manifest) == self.label
