"""The canonical ONNX model in the format of another engine, proven on ONNX Runtime's answers by that engine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unified_backend.engines import Runner
from unified_backend.engines.apart import ask_apart
from unified_backend.engines.reference import open_reference
from unified_backend.engines.sessions import runtime_version
from unified_backend.errors import ConversionError, EngineError, ToolchainError, VerificationError
from unified_backend.exports.form import Form
from unified_backend.exports.writing import FILES
from unified_backend.formats import FORMATS, Source
from unified_backend.forms.direct import build_direct
from unified_backend.forms.foreign import Foreign
from unified_backend.forms.reference import ENGINES
from unified_backend.settings import Settings
from unified_backend.tensors import Signature
from unified_backend.verification import Sample, require, samples_of, verify

__all__ = ["export", "require_engine"]

_NO_PIP = {"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_REQUIRE_VIRTUALENV": "1"}


def require_engine(form: Form) -> None:
    """
    Raises:
        ToolchainError: the engine that would write the format, and run what it wrote, is not there.
    """
    if form.to in FILES and (reason := ENGINES[form.to].unusable(None)):
        raise ToolchainError(f"--to {form.to} cannot be done", reason, "Install it, or choose another format")


def export(
    model: Path, label: str, form: Form, settings: Settings, given: Sequence[Path], folder: Path
) -> dict[str, Any]:
    """Write an ONNX model in another format, and compare what its engine answers with ONNX Runtime's answers.

    Args:
        model: the ONNX file.
        given: the user's samples.
        folder: empty; gets the files.

    Returns:
        what the report says of it.

    Raises:
        ConversionError: it cannot be written, or its engine does not take what was written.
    """
    began = time.monotonic()
    reference, _ = open_reference(label, model, settings)
    samples = samples_of(reference, {}, given)
    if not samples:
        raise ConversionError(
            f"{label}: what is written cannot be compared",
            "no seeded input runs in ONNX Runtime",
            "Give inputs that the model takes, with --samples",
        )
    job = {
        "label": label,
        "path": str(model.absolute()),
        "folder": str(folder),
        "signature": reference.signature.to_json(),
        **{"to": form.to, "fp16": form.fp16, "weight_bits": form.weight_bits},
    }
    what, do = f"{label}: the conversion to {form.to} failed", "Choose another format with --to"
    try:
        made = ask_apart("unified_backend.exports.writing", job, settings, what, do, _NO_PIP)
        for path in folder.glob(".*"):
            path.unlink()
        with tempfile.TemporaryDirectory() as scratch:
            runner = _runner(folder / FILES[form.to], label, settings, form, Path(scratch))
            judged = _judged(runner, samples, form, settings)
            runner.close()
    except EngineError as error:
        raise ConversionError(error.what, error.why, error.do) from None
    return {
        **{"to": form.to, "fp16": form.fp16, "weight_bits": form.weight_bits},
        **made,
        "seconds": round(time.monotonic() - began, 3),
        "reference": f"onnxruntime {runtime_version()}",
        **judged,
    }


def _runner(path: Path, label: str, settings: Settings, form: Form, scratch: Path) -> Runner:
    """What was written, in its engine, as a load would take it."""
    source = Source(label, form.to, path, (path,))
    description = FORMATS[form.to].describe(path, Settings(), label)
    foreign = Foreign(source, description, Settings(conversion_memory=settings.conversion_memory), {}, ())
    _, runner = build_direct(foreign, ENGINES[form.to], scratch)
    return runner


def _judged(runner: Runner, samples: Sequence[Sample], form: Form, settings: Settings) -> dict[str, Any]:
    """The errors of every output; samples of a batch are left out where it takes one sample at a time."""
    by_default, reason = form.tolerance(samples)
    tolerance = by_default if settings.tolerance is None else settings.tolerance
    reason = reason if settings.tolerance is None else 'the parameter "tolerance" says so'
    fitting = [sample for sample in (_converted(sample, runner.signature) for sample in samples) if sample]
    notes = []
    if len(fitting) < len(samples):
        notes.append("it answers one sample at a time: what it answers to several at once is not the same, or nothing")
    failure = ""
    rows = []
    try:
        rows = verify(runner, fitting, tolerance)
        require(rows, "onnxruntime", f"the {form.to} model")
        if not fitting:
            shapes = ", ".join(f"{spec.name} {list(spec.shape or ())}" for spec in runner.signature.inputs)
            raise VerificationError(
                f"the {form.to} model takes none of the samples",
                f"its inputs are {shapes}",
                "Give samples of these shapes, with --samples",
            )
    except VerificationError as error:
        failure = str(error)
    return {
        "tolerance": tolerance,
        "tolerance_reason": reason,
        "notes": notes,
        "verified": [row.to_json() for row in rows],
        "passed": not failure,
        **({"failure": failure} if failure else {}),
    }


def _converted(sample: Sample, signature: Signature) -> Sample | None:
    """The sample with arrays of the types that the inputs have here; None where their shapes are others."""
    feeds = {}
    for spec in signature.inputs:
        array = sample.feeds.get(spec.name)
        if array is None or (spec.shape is not None and len(spec.shape) != array.ndim):
            return None
        sizes = zip(array.shape, spec.shape or array.shape, strict=True)
        if any(isinstance(size, int) and size != mine for mine, size in sizes):
            return None
        feeds[spec.name] = array.astype(spec.numpy)
    return Sample(sample.batch, feeds, sample.expected)
