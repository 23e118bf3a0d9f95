"""A source served as it is, by an engine that takes its format, and proven on another's answers."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend import hosts
from unified_backend.batching import Verdict, prove_batching
from unified_backend.cache import Key
from unified_backend.engines import Built, Canonical, Engine, Runner, Threads
from unified_backend.engines.apart import build_apart
from unified_backend.errors import (
    ConversionError,
    DamagedSourceError,
    EngineError,
    RequestError,
    SourceError,
    ToolchainError,
)
from unified_backend.formats import integrity
from unified_backend.formats.savedmodel import DEFAULT_SIGNATURE
from unified_backend.forms.converted import conversion
from unified_backend.forms.foreign import Foreign
from unified_backend.forms.reference import ENGINES
from unified_backend.lookups import Lookup
from unified_backend.model_keys import direct_key
from unified_backend.tensors import Signature
from unified_backend.toolchains import environment
from unified_backend.toolchains.catalogue import toolchain_for
from unified_backend.variables import toolchain_directory, toolchain_mode
from unified_backend.verification import Sample, read_samples, samples_of

__all__ = ["build_direct", "direct", "key_of_direct"]

logger = logging.getLogger(__name__)

_OWN = {"tflite": "litert"}  # format -> the engine that is the format's own: what it answers is right by definition
_FIXED_BATCH = ("tflite", "mnn")
_ITSELF = "itself alone: no other engine takes the file"


def direct(
    foreign: Foreign, engine: Engine, lookup: Lookup, required: bool = False, tried: Sequence[str] = ()
) -> Canonical:
    """The source as an engine takes it, with the engine built from it.

    Args:
        required: never build it.
        tried: what does not serve the source, a line each, for the notes.

    Raises:
        ConfigError: a sample of the user's does not fit the model.
        EngineError: the engine does not take it.
        NotCachedError: `required`, and it is not in the cache.
        VerificationError: the engine computes something else than the source.
    """

    def make(folder: Path) -> dict[str, Any]:
        integrity.check(foreign.source)
        facts, runner = build_direct(foreign, engine, folder)
        samples, judge = _answers(foreign, engine, lookup)
        rows = foreign.verified(runner, samples, engine.name, judge)
        logger.info(
            "taken as it is model=%s format=%s engine=%s reference=%s max_abs=%.1e",
            foreign.source.label,
            foreign.source.format,
            engine.name,
            judge.partition(":")[0].replace(" ", "-"),
            max((row.max_abs for row in rows), default=0.0),
        )
        taken = f"{engine.name} takes the file as it is; compared with {judge}"
        return {
            "built": facts,
            "signature": runner.signature.to_json(),
            "notes": [*foreign.description.notes, *tried, taken],
            "reference": judge,
            "verified": [row.to_json() for row in rows],
        }

    key = key_of_direct(foreign, engine)
    entry = lookup(key, make, required)
    signature = Signature.from_json(entry.facts["signature"])
    built = Built(entry.path, entry.facts["built"])
    return _canonical(foreign, engine, key.digest, signature, tuple(entry.facts["notes"]), built)


def key_of_direct(foreign: Foreign, engine: Engine) -> Key:
    """Of the finding that the engine takes this source."""
    samples = [digest for _, digest in foreign.samples]
    return direct_key(
        foreign.source, foreign.description, foreign.fixed, foreign.digests, samples, engine, foreign.settings
    )


def build_direct(foreign: Foreign, engine: Engine, folder: Path) -> tuple[Mapping[str, Any], Runner]:
    """The engine, built and loaded; with an open batch dimension where the file fixes it at 1 and a run proves it.

    The converters of TensorFlow Lite and MNN fix it, whatever the model was.
    """
    given = foreign.signature
    if foreign.source.format in _FIXED_BATCH and (opened := _with_open_batch(given)):
        try:
            facts, runner = _tried(foreign, engine, opened, folder)
            if prove_batching(runner, foreign.fixed).verdict is Verdict.PROVEN:
                return facts, runner
            runner.close()
        except EngineError as error:
            logger.info('batch stays 1 model=%s engine=%s reason="%s"', foreign.source.label, engine.name, error.why)
        for path in folder.iterdir():
            path.unlink()
    return _tried(foreign, engine, given, folder)


def _tried(foreign: Foreign, engine: Engine, signature: Signature, folder: Path) -> tuple[Mapping[str, Any], Runner]:
    form = _canonical(foreign, engine, "", signature)
    facts = build_apart(engine, form, foreign.settings, folder)
    return facts, engine.load(form, Built(folder, facts), foreign.settings, Threads(hosts.cores()))


def _canonical(
    foreign: Foreign,
    engine: Engine,
    digest: str,
    signature: Signature,
    notes: tuple[str, ...] = (),
    built: Built | None = None,
) -> Canonical:
    return Canonical(
        foreign.source.label,
        foreign.source.path,
        digest,
        signature,
        notes,
        format=foreign.source.format,
        inner=foreign.description.inner,
        part=_part(foreign),
        feeds=foreign.description.job.get("feeds") or {},
        judged_by=engine.name,
        built=built,
    )


def _part(foreign: Foreign) -> str | None:
    """The signature's key, where readers that are told nothing take another one."""
    job = foreign.description.job
    other = "graph" in job if foreign.source.format == "tflite" else job.get("signature") != DEFAULT_SIGNATURE
    return str(job["signature"]) if "signature" in job and other else None


def _answers(foreign: Foreign, engine: Engine, lookup: Lookup) -> tuple[list[Sample], str]:
    """What the source framework answers, where its toolchain is there; else another engine that takes the file."""
    toolchain = toolchain_for(foreign.source.format)
    if toolchain and toolchain_mode() != "off" and environment.python_of(toolchain, toolchain_directory()):
        try:
            entry = conversion(foreign, toolchain, lookup)
            return read_samples(entry.path, entry.facts["samples"]), entry.facts["framework"]
        except DamagedSourceError:
            raise
        except (ConversionError, ToolchainError) as error:
            logger.info(
                'no reference model=%s toolchain=%s reason="%s"', foreign.source.label, toolchain.name, error.why
            )
    if engine.name == _OWN.get(foreign.source.format):
        return [], "nothing: it is the format's own interpreter"
    for other in ENGINES.values():
        if other is engine or foreign.source.format not in other.accepts or other.unusable(foreign.settings.gpu):
            continue
        form = _canonical(foreign, other, "", foreign.signature)
        try:
            with tempfile.TemporaryDirectory() as folder:
                built = Built(Path(folder), build_apart(other, form, foreign.settings, Path(folder)))
                runner = other.load(form, built, foreign.settings, Threads(hosts.cores()))
            if samples := samples_of(runner, foreign.fixed, [path for path, _ in foreign.samples]):
                return samples, other.name
        except (EngineError, RequestError, SourceError) as error:
            logger.info('no reference model=%s engine=%s reason="%s"', foreign.source.label, other.name, error.why)
    return [], _ITSELF


def _with_open_batch(signature: Signature) -> Signature | None:
    """The signature with an open first dimension, if each has a fixed one of 1; an MNN file tells of inputs only."""
    known = [spec for spec in signature.outputs if spec.shape is not None]
    if not signature.inputs or not all(spec.shape and spec.shape[0] == 1 for spec in (*signature.inputs, *known)):
        return None
    inputs, outputs = (
        tuple(spec if spec.shape is None else dataclasses.replace(spec, shape=(None, *spec.shape[1:])) for spec in side)
        for side in (signature.inputs, signature.outputs)
    )
    return Signature(inputs, outputs)
