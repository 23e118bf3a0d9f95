"""A source as ONNX: converted by a toolchain, and proven on the source framework's own answers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend.batching import Verdict, prove_batching
from unified_backend.cache import Entry, FileMemo, Key
from unified_backend.conversion import convert
from unified_backend.conversion.batch import free_batch
from unified_backend.conversion.normalise import normalise
from unified_backend.engines import Canonical, Runner
from unified_backend.errors import ConversionError, SourceError
from unified_backend.formats.integrity import refuse_code
from unified_backend.formats.onnx import read_model
from unified_backend.forms.foreign import Foreign
from unified_backend.forms.reference import Reference
from unified_backend.lookups import Lookup
from unified_backend.model_keys import conversion_key, converted_key
from unified_backend.tensors import Signature
from unified_backend.toolchains import environment
from unified_backend.toolchains.catalogue import Toolchain
from unified_backend.variables import toolchain_directory, toolchain_mode
from unified_backend.verification import read_samples

__all__ = ["Converted", "conversion", "converted", "key_of_conversion", "key_of_converted"]

logger = logging.getLogger(__name__)


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

    def canonical(self, label: str) -> Canonical:
        """The canonical ONNX model."""
        signature = Signature.from_json(self.facts["signature"])
        return Canonical(label, self.path, self.digest, signature, tuple(self.facts["notes"]))


def converted(
    foreign: Foreign,
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
    entry = conversion(foreign, toolchain, lookup, required)
    key = key_of_converted(foreign, toolchain, lookup.cache.store.memo)

    def make(folder: Path) -> dict[str, Any]:
        return _canonical_of(foreign, entry, folder, reference, tried)

    found = lookup(key, make, required)
    path = (found if found.facts["changes"] else entry).path / convert.MODEL
    return Converted(path, key.digest, found.facts, entry.facts)


def key_of_conversion(foreign: Foreign, toolchain: Toolchain) -> Key:
    """Of the conversion of this source."""
    job = convert.job_of(foreign.source, foreign.description, foreign.settings, foreign.fixed)
    return conversion_key(foreign.source, job, foreign.digests, [digest for _, digest in foreign.samples], toolchain)


def key_of_converted(foreign: Foreign, toolchain: Toolchain, memo: FileMemo) -> Key:
    """Of the canonical model made from the conversion."""
    return converted_key(key_of_conversion(foreign, toolchain).digest, foreign.settings, memo)


def conversion(foreign: Foreign, toolchain: Toolchain, lookup: Lookup, required: bool = False) -> Entry:
    """What the toolchain's worker made: the source framework's answers to samples, and a model where it can be ONNX."""
    job = convert.job_of(foreign.source, foreign.description, foreign.settings, foreign.fixed)

    def make(folder: Path) -> dict[str, Any]:
        refuse_code(foreign.source)
        python = environment.require(toolchain, toolchain_directory(), toolchain_mode(), foreign.source.label)
        samples = [path for path, _ in foreign.samples]
        return convert.convert(foreign.source, job, samples, toolchain, python, foreign.settings, folder)

    with lookup.report.phase("convert"):
        return lookup(key_of_conversion(foreign, toolchain), make, required)


def _canonical_of(
    foreign: Foreign, made: Entry, folder: Path, reference: Reference, tried: Sequence[str]
) -> dict[str, Any]:
    """Check what the worker made, and open its batch dimension where that is possible; facts of the entry."""
    facts = made.facts
    if facts["failure"]:
        raise ConversionError(
            f"{foreign.source.label}: {facts['converter']} cannot convert the {foreign.source.format} model",
            facts["failure"],
            "Serve it by an engine that takes the file as it is (parameter `engine`), or export it as ONNX",
        )
    path = made.path / convert.MODEL
    changes = normalise(path, [made.path / name for name in facts["files"]], folder)
    path = folder / convert.MODEL if changes else path
    runner, notes = reference.onnx(path)
    samples = read_samples(made.path, facts["samples"])
    rows = foreign.verified(runner, samples, "the converted model", facts["framework"])
    if not facts["files"] and (opened := _with_batch_opened(foreign, path, folder, reference)):
        changes, runner = [*changes, "batch dimension opened, and proven by a run"], opened
    logger.info(
        "converted model=%s format=%s toolchain=%s seconds=%.1f peak_rss_mb=%d reference=%s max_abs=%.1e",
        foreign.source.label,
        foreign.source.format,
        facts["toolchain"],
        facts["seconds"],
        facts["peak_rss_mb"],
        facts["framework"].replace(" ", "-"),
        max((row.max_abs for row in rows), default=0.0),
    )
    how = f"converted by {facts['converter']}; compared with {facts['framework']}"
    return {
        "changes": changes,
        "notes": [*foreign.description.notes, *tried, how, *facts["notes"], *facts["repairs"], *changes, *notes],
        "signature": runner.signature.to_json(),
        "reference": facts["framework"],
        "verified": [row.to_json() for row in rows],
    }


def _with_batch_opened(foreign: Foreign, path: Path, folder: Path, reference: Reference) -> Runner | None:
    """The model with an open first dimension where it is fixed at 1, if a run proves it; then it is in `folder`."""
    if foreign.source.format != "tflite" or (opened := free_batch(read_model(path))) is None:
        return None
    trial = folder / "opened.onnx"
    trial.write_bytes(opened.SerializeToString())
    try:
        again = Reference(foreign.source.label, foreign.settings)
        runner, _ = again.onnx(trial)
        if prove_batching(runner, foreign.fixed).verdict is not Verdict.PROVEN:
            trial.unlink()
            return None
    except SourceError:
        trial.unlink()
        return None
    trial.replace(folder / convert.MODEL)
    reference.replace_onnx(runner)
    return runner
