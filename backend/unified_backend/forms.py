"""The form of a source that engines are built from: the canonical ONNX model, or the source itself.

A source that is not ONNX has ways to a form: conversion by a toolchain, or *directly*, an engine that takes the file as
it is. What the cache holds already is taken first, so that a restart neither converts again nor changes its mind.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend import hosts
from unified_backend.batching import Verdict, prove_batching
from unified_backend.cache import Entry, FileMemo, Key
from unified_backend.conversion import convert
from unified_backend.conversion.batch import free_batch
from unified_backend.conversion.normalise import normalise
from unified_backend.engines import Built, Canonical, Engine, Runner, Threads
from unified_backend.engines.apart import build_apart
from unified_backend.engines.litert import LiteRt
from unified_backend.engines.onnxruntime import OnnxRuntime
from unified_backend.engines.openvino import OpenVino
from unified_backend.engines.reference import open_reference
from unified_backend.errors import (
    ConversionError,
    EngineError,
    NotCachedError,
    RequestError,
    SourceChangedError,
    SourceError,
    ToolchainError,
    UnifiedError,
    VerificationError,
)
from unified_backend.formats import Source
from unified_backend.formats.description import Description
from unified_backend.formats.onnx import read_model
from unified_backend.lookups import Lookup
from unified_backend.model_keys import canonical_key, conversion_key, converted_key, direct_key
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings, toolchain_directory, toolchain_mode
from unified_backend.tensors import Signature
from unified_backend.toolchains import environment
from unified_backend.toolchains.catalogue import Toolchain, toolchain_for
from unified_backend.verification import Compared, Sample, read_samples, require, samples_of, verify

__all__ = ["ENGINES", "Converted", "Direct", "Reference", "canonical_of_onnx"]

logger = logging.getLogger(__name__)

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (OnnxRuntime(), OpenVino(), LiteRt())}
_OWN = {"tflite": "litert"}  # format -> the engine that is the format's own: what it answers is right by definition
_FAILURES = (ConversionError, EngineError, SourceError, ToolchainError, VerificationError)
_ITSELF = "itself alone: no other engine takes the file"


class Reference:
    """A form in the engine that others are compared with, opened when first needed: a warm load never opens it."""

    def __init__(self, label: str, settings: Settings) -> None:
        self._label = label
        self._settings = settings
        self._onnx: tuple[Runner, list[str]] | None = None
        self._direct: dict[str, Runner] = {}

    def onnx(self, path: Path) -> tuple[Runner, list[str]]:
        """The canonical ONNX model, unoptimised, with a note for each output that is left out."""
        if self._onnx is None:
            self._onnx = open_reference(self._label, path, self._settings)
        return self._onnx

    def replace_onnx(self, runner: Runner) -> None:
        """Take another model for the canonical one."""
        self._onnx = (runner, [])

    def runner(self, form: Canonical) -> Runner:
        """The form in the engine that it was judged by."""
        if form.format == "onnx":
            return self.onnx(form.path)[0]
        if form.digest not in self._direct:
            threads = Threads(hosts.cores())
            self._direct[form.digest] = ENGINES[form.judged_by].load(form, form.built, self._settings, threads)
        return self._direct[form.digest]


def canonical_of_onnx(source: Source, settings: Settings, lookup: Lookup, reference: Reference) -> Canonical:
    """The canonical model of an ONNX source; its entry holds a file only where the source needed a repair."""
    key = canonical_key(source, settings, lookup.snapshot.digests, lookup.cache.store.memo)

    def make(folder: Path) -> dict[str, Any]:
        changes = normalise(source.path, source.files[1:], folder)
        runner, notes = reference.onnx(folder / "model.onnx" if changes else source.path)
        return {"changes": changes, "notes": notes, "signature": runner.signature.to_json()}

    entry = lookup(key, make)
    path = entry.path / "model.onnx" if entry.facts["changes"] else source.path
    signature = Signature.from_json(entry.facts["signature"])
    return Canonical(source.label, path, key.digest, signature, (*entry.facts["changes"], *entry.facts["notes"]))


@dataclasses.dataclass(frozen=True)
class Converted:
    """A source as ONNX, in the cache.

    Attributes:
        path: the model; its external data lies beside it.
        digest: of its key, in hex.
        facts: of the canonical model: signature, notes, what it was compared with, and how far off it is.
        conversion: of the conversion: versions, seconds, memory.
    """

    path: Path
    digest: str
    facts: Mapping[str, Any]
    conversion: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Direct:
    """A source that is not ONNX, with the engines that take it as it is.

    Attributes:
        fixed: dimensions that the config fixes.
        digests: SHA-256 of the bytes of each of the source's files, in hex.
        samples: the user's sample files, each with the digest of its bytes.
    """

    source: Source
    description: Description
    settings: Settings
    fixed: FixedDims
    digests: tuple[str, ...]
    samples: tuple[tuple[Path, str], ...] = ()

    def engines(self) -> list[Engine]:
        """The engines that take this format, and that the settings allow, the best first."""
        chosen = self.settings.engine
        takers = (engine for engine in ENGINES.values() if self.source.format in engine.accepts)
        return [engine for engine in takers if chosen in ("auto", engine.name)]

    def ways(self) -> list[Engine | Toolchain]:
        """Engines that take the source as it is, and the toolchain that converts it: the best first.

        An installed toolchain comes first, for it brings the source framework's own answers; one that is still to be
        installed comes last.
        """
        direct = [engine for engine in self.engines() if not engine.unusable()]
        toolchain, mode, chosen = toolchain_for(self.source.format), toolchain_mode(), self.settings.engine
        if toolchain is None or mode == "off" or (chosen != "auto" and "onnx" not in ENGINES[chosen].accepts):
            return [*direct]
        if environment.python_of(toolchain, toolchain_directory()):
            return [*direct, toolchain] if chosen == "openvino" else [toolchain, *direct]
        return [*direct, toolchain]

    def key(self, engine: Engine) -> Key:
        """Of the finding that the engine takes this source."""
        samples = [digest for _, digest in self.samples]
        return direct_key(self.source, self.description, self.fixed, self.digests, samples, engine, self.settings)

    def find(self, lookup: Lookup, reference: Reference) -> Canonical:
        """The source in the first engine that takes it and computes what it should.

        Raises:
            UnifiedError: no engine takes it; of one engine its own error, of several or none an EngineError.
        """
        ways = self.ways()
        for way in ways:
            try:
                return self._form(way, lookup, reference, required=True)
            except NotCachedError as error:
                if way is ways[-1] and self.settings.require_cached:
                    raise error from None
        failures: list[tuple[str, UnifiedError]] = []
        for way in ways:
            name = _name(way)
            try:
                tried = [f"not served by {loser}: {error.what}: {error.why}" for loser, error in failures]
                return self._form(way, lookup, reference, required=False, tried=tried)
            except SourceChangedError:
                raise
            except _FAILURES as error:
                logger.warning(
                    'not taken model=%s by=%s reason="%s: %s"', self.source.label, name, error.what, error.why
                )
                failures.append((name, error))
        if len(failures) == 1:
            raise failures[0][1]
        raise EngineError(
            f"{self.source.label}: no engine takes the {self.source.format} model",
            "; ".join(f"{name}: {error.why}" for name, error in failures) or self._obstacle(),
            "Export it as ONNX, or as a SavedModel (Keras: model.export(folder))",
        )

    def _obstacle(self) -> str:
        """Why there is no way at all."""
        chosen, form = self.settings.engine, self.source.format
        reasons = [f"{engine.name}: {reason}" for engine in self.engines() if (reason := engine.unusable())]
        if toolchain := toolchain_for(form):
            if chosen != "auto" and "onnx" not in ENGINES[chosen].accepts:
                takers = [name for name, engine in ENGINES.items() if form in engine.accepts]
                reasons.append(f'parameter "engine" is "{chosen}", and {", ".join(takers) or "none"} takes it as it is')
            elif toolchain_mode() == "off":
                reasons.append(f"TRITON_UNIFIED_TOOLCHAINS is off, and the toolchain {toolchain.name} would convert it")
        return "; ".join(reasons) or f"{form} is recognised, and none of {', '.join(ENGINES)} takes it as it is"

    def _form(
        self, way: Engine | Toolchain, lookup: Lookup, reference: Reference, required: bool, tried: Sequence[str] = ()
    ) -> Canonical:
        if isinstance(way, Toolchain):
            return self._converted(way, lookup, reference, required, tried)
        return self._direct(way, lookup, reference, required, tried)

    def _converted(
        self, toolchain: Toolchain, lookup: Lookup, reference: Reference, required: bool, tried: Sequence[str]
    ) -> Canonical:
        """The canonical ONNX model, proven on the source framework's own answers."""
        made = self.convert(toolchain, lookup, reference, required, tried)
        signature = Signature.from_json(made.facts["signature"])
        return Canonical(self.source.label, made.path, made.digest, signature, tuple(made.facts["notes"]))

    def convert(
        self,
        toolchain: Toolchain,
        lookup: Lookup,
        reference: Reference,
        required: bool = False,
        tried: Sequence[str] = (),
    ) -> Converted:
        """The source as ONNX, proven on the source framework's own answers.

        Args:
            required: never make it.
            tried: what does not serve the source, a line each, for the notes.

        Raises:
            ConfigError: a parameter that the converter does not take.
            ConversionError: the toolchain does not load, run or convert the source.
            ToolchainError: the toolchain is missing.
            VerificationError: what was made computes something else.
        """
        entry = self._conversion(toolchain, lookup, required)
        key = self.converted_key(toolchain, lookup.cache.store.memo)

        def make(folder: Path) -> dict[str, Any]:
            return self._canonical_of(entry, folder, reference, tried)

        found = lookup(key, make, required)
        path = (found if found.facts["changes"] else entry).path / convert.MODEL
        return Converted(path, key.digest, found.facts, entry.facts)

    def conversion_key(self, toolchain: Toolchain) -> Key:
        """Of the conversion of this source."""
        job = convert.job_of(self.source, self.description, self.settings, self.fixed)
        return conversion_key(self.source, job, self.digests, [digest for _, digest in self.samples], toolchain)

    def converted_key(self, toolchain: Toolchain, memo: FileMemo) -> Key:
        """Of the canonical model made from the conversion."""
        return converted_key(self.conversion_key(toolchain).digest, self.settings, memo)

    def _conversion(self, toolchain: Toolchain, lookup: Lookup, required: bool) -> Entry:
        job = convert.job_of(self.source, self.description, self.settings, self.fixed)

        def make(folder: Path) -> dict[str, Any]:
            python = environment.require(toolchain, toolchain_directory(), toolchain_mode(), self.source.label)
            samples = [path for path, _ in self.samples]
            return convert.convert(self.source, job, samples, toolchain, python, self.settings, folder)

        with lookup.report.phase("convert"):
            return lookup(self.conversion_key(toolchain), make, required)

    def _canonical_of(
        self, converted: Entry, folder: Path, reference: Reference, tried: Sequence[str]
    ) -> dict[str, Any]:
        """Check what the worker made, and open its batch dimension where that is possible; facts of the entry."""
        facts = converted.facts
        if facts["failure"]:
            raise ConversionError(
                f"{self.source.label}: {facts['converter']} cannot convert the {self.source.format} model",
                facts["failure"],
                "Serve it by an engine that takes the file as it is (parameter `engine`), or export it as ONNX",
            )
        path = converted.path / convert.MODEL
        changes = normalise(path, [converted.path / name for name in facts["files"]], folder)
        path = folder / convert.MODEL if changes else path
        runner, notes = reference.onnx(path)
        samples = read_samples(converted.path, facts["samples"])
        rows = self._verified(runner, samples, "the converted model", facts["framework"])
        if not facts["files"] and (opened := self._with_batch_opened(path, folder, reference)):
            changes, runner = [*changes, "batch dimension opened, and proven by a run"], opened
        logger.info(
            "converted model=%s format=%s toolchain=%s seconds=%.1f peak_rss_mb=%d reference=%s max_abs=%.1e",
            self.source.label,
            self.source.format,
            facts["toolchain"],
            facts["seconds"],
            facts["peak_rss_mb"],
            facts["framework"].replace(" ", "-"),
            max((row.max_abs for row in rows), default=0.0),
        )
        made = f"converted by {facts['converter']}; compared with {facts['framework']}"
        return {
            "changes": changes,
            "notes": [*self.description.notes, *tried, made, *facts["notes"], *facts["repairs"], *changes, *notes],
            "signature": runner.signature.to_json(),
            "reference": facts["framework"],
            "verified": [row.to_json() for row in rows],
        }

    def _with_batch_opened(self, path: Path, folder: Path, reference: Reference) -> Runner | None:
        """The model with an open first dimension where it is fixed at 1, if a run proves it; then it is in `folder`."""
        if self.source.format != "tflite" or (opened := free_batch(read_model(path))) is None:
            return None
        trial = folder / "opened.onnx"
        trial.write_bytes(opened.SerializeToString())
        try:
            again = Reference(self.source.label, self.settings)
            runner, _ = again.onnx(trial)
            if prove_batching(runner, self.fixed).verdict is not Verdict.PROVEN:
                trial.unlink()
                return None
        except SourceError:
            trial.unlink()
            return None
        trial.replace(folder / convert.MODEL)
        reference.replace_onnx(runner)
        return runner

    def _direct(
        self, engine: Engine, lookup: Lookup, reference: Reference, required: bool, tried: Sequence[str]
    ) -> Canonical:
        key = self.key(engine)

        def make(folder: Path) -> dict[str, Any]:
            facts, runner = self._built(engine, folder)
            samples, judge = self._answers(engine, lookup)
            rows = self._verified(runner, samples, engine.name, judge)
            logger.info(
                "taken as it is model=%s format=%s engine=%s reference=%s max_abs=%.1e",
                self.source.label,
                self.source.format,
                engine.name,
                judge.partition(":")[0].replace(" ", "-"),
                max((row.max_abs for row in rows), default=0.0),
            )
            return {
                "built": facts,
                "signature": runner.signature.to_json(),
                "notes": [
                    *self.description.notes,
                    *tried,
                    f"{engine.name} takes the file as it is; compared with {judge}",
                ],
                "reference": judge,
                "verified": [row.to_json() for row in rows],
            }

        entry = lookup(key, make, required)
        signature = Signature.from_json(entry.facts["signature"])
        built = Built(entry.path, entry.facts["built"])
        return self._canonical(engine, key.digest, signature, tuple(entry.facts["notes"]), built)

    def _built(self, engine: Engine, folder: Path) -> tuple[Mapping[str, Any], Runner]:
        """The engine, built and loaded; with an open batch dimension where the file fixes it at 1 and a run proves it.

        TensorFlow Lite's converter fixes it, whatever the model was.
        """
        given = Signature(self.description.inputs, self.description.outputs)
        if self.source.format == "tflite" and (opened := _with_open_batch(given)):
            try:
                facts, runner = self._tried(engine, opened, folder)
                if prove_batching(runner, self.fixed).verdict is Verdict.PROVEN:
                    return facts, runner
                runner.close()
            except EngineError as error:
                logger.info('batch stays 1 model=%s engine=%s reason="%s"', self.source.label, engine.name, error.why)
            for path in folder.iterdir():
                path.unlink()
        return self._tried(engine, given, folder)

    def _tried(self, engine: Engine, signature: Signature, folder: Path) -> tuple[Mapping[str, Any], Runner]:
        form = self._canonical(engine, "", signature)
        facts = build_apart(engine, form, self.settings, folder)
        return facts, engine.load(form, Built(folder, facts), self.settings, Threads(hosts.cores()))

    def _canonical(
        self,
        engine: Engine,
        digest: str,
        signature: Signature,
        notes: tuple[str, ...] = (),
        built: Built | None = None,
    ) -> Canonical:
        return Canonical(
            self.source.label,
            self.source.path,
            digest,
            signature,
            notes,
            format=self.source.format,
            inner=self.description.inner,
            feeds=self.description.job.get("feeds") or {},
            judged_by=engine.name,
            built=built,
        )

    def _answers(self, engine: Engine, lookup: Lookup) -> tuple[list[Sample], str]:
        """What the source framework answers, where its toolchain is there; else another engine that takes the file."""
        toolchain = toolchain_for(self.source.format)
        if toolchain and toolchain_mode() != "off" and environment.python_of(toolchain, toolchain_directory()):
            try:
                entry = self._conversion(toolchain, lookup, required=False)
                return read_samples(entry.path, entry.facts["samples"]), entry.facts["framework"]
            except (ConversionError, ToolchainError) as error:
                logger.info(
                    'no reference model=%s toolchain=%s reason="%s"', self.source.label, toolchain.name, error.why
                )
        if engine.name == _OWN.get(self.source.format):
            return [], "nothing: it is the format's own interpreter"
        for other in ENGINES.values():
            if other is engine or self.source.format not in other.accepts or other.unusable():
                continue
            form = self._canonical(other, "", Signature(self.description.inputs, self.description.outputs))
            try:
                with tempfile.TemporaryDirectory() as folder:
                    built = Built(Path(folder), build_apart(other, form, self.settings, Path(folder)))
                    runner = other.load(form, built, self.settings, Threads(hosts.cores()))
                if samples := samples_of(runner, self.fixed):
                    return samples, other.name
            except (EngineError, RequestError, SourceError) as error:
                logger.info('no reference model=%s engine=%s reason="%s"', self.source.label, other.name, error.why)
        return [], _ITSELF

    def _verified(self, runner: Runner, samples: list[Sample], what: str, judge: str) -> list[Compared]:
        rows: list[Compared] = []
        try:
            rows = verify(runner, samples, self.settings.tolerance)
            require(rows, judge, what)
        except VerificationError as error:
            named = VerificationError(f"{self.source.label}: {error.what}", error.why, error.do)
            if self.settings.verify == "strict":
                raise named from None
            if self.settings.verify == "warn":
                logger.warning("%s Accepted all the same, because verify is warn.", named)
        return rows


def _with_open_batch(signature: Signature) -> Signature | None:
    """The signature with an open first dimension, if each input and output has a fixed one of 1."""
    if not signature.inputs or not all(
        spec.shape and spec.shape[0] == 1 for spec in (*signature.inputs, *signature.outputs)
    ):
        return None
    inputs, outputs = (
        tuple(dataclasses.replace(spec, shape=(None, *(spec.shape or ())[1:])) for spec in side)
        for side in (signature.inputs, signature.outputs)
    )
    return Signature(inputs, outputs)


def _name(way: Engine | Toolchain) -> str:
    return f"conversion ({way.name})" if isinstance(way, Toolchain) else way.name
