"""A source as an ONNX file with a report: the load's own way to its canonical model, standing alone.

From there on to another engine's format, where that is asked for.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.cache import Cache, Snapshot
from unified_backend.engines.sessions import runtime_version
from unified_backend.errors import ConversionError, Refused, SourceError, ToolchainError, VerificationError
from unified_backend.exports.export import export, require_engine
from unified_backend.exports.form import Form
from unified_backend.formats import Source, find_source
from unified_backend.formats.description import Description
from unified_backend.formats.onnx import files_as, read_model
from unified_backend.formats.parameters import refuse_unused
from unified_backend.forms.converted import converted
from unified_backend.forms.foreign import foreign
from unified_backend.forms.reference import Reference, canonical_of_onnx
from unified_backend.graph.operators import census
from unified_backend.lookups import Lookup, Report
from unified_backend.settings import Settings
from unified_backend.stages.around import alone
from unified_backend.tensors import Signature, TensorSpec
from unified_backend.toolchains.catalogue import toolchain_for

__all__ = ["MODEL", "REPORT", "convert", "require_usable", "write_folder"]

MODEL, REPORT = "model.onnx", "report.json"


@dataclasses.dataclass(frozen=True)
class _Found:
    """A converted model where it lies, and what the report says of it."""

    path: Path
    signature: Signature
    description: Description | None
    report: Mapping[str, Any]

    def signature_facts(self) -> dict[str, Any]:
        """Inputs and outputs with their tensors in the source, and the key of the source's signature if it has any."""
        inner = self.description.inner if self.description else {}
        key = self.description.job.get("signature") if self.description else None
        sides = {side: [_row(spec, inner) for spec in getattr(self.signature, side)] for side in ("inputs", "outputs")}
        return {"name": key, **sides}


def convert(
    source: Path, settings: Settings, samples: Path | None, cache: Cache, out: Path, form: Form | None = None
) -> dict[str, Any]:
    """Write `model.onnx`, its external data if it has any, and `report.json` into a folder.

    A model that cannot be converted, or does not compute what its source does, leaves a report alone, which says why.

    Args:
        source: a file, or a folder that holds one model.
        samples: folder with the user's samples, `.npz` files.
        cache: what it holds is not converted again, and what is converted stays there for loads.
        out: made if it is not there; of an earlier conversion, its files are replaced.
        form: what to write in place of ONNX.

    Returns:
        the report.

    Raises:
        Refused: `out` holds other files, or cannot be written; or the form cannot be.
        SourceError: no model, several, or one that cannot be read.
        ConfigError: a parameter names what the model or the converter has not got.
        ToolchainError: the toolchain that is needed is missing.
        ConversionError: it cannot be converted.
    """
    form = form or Form()
    form.require_possible()
    require_engine(form)
    require_usable(out)
    try:
        path, report = _converted(source, settings, samples, cache)
        report["to"] = form.to
        if form.to != "onnx" and _kept(report, settings):
            return _exported(path, report, form, settings, samples, out)
    except (ConversionError, SourceError, ToolchainError) as error:
        # An earlier conversion's model beside this one's failure would be taken for its result.
        _write(out, {}, {"source": source.name, "verified": [], "passed": False, "failure": str(error)})
        raise
    _write(out, files_as(path, MODEL) if form.to == "onnx" and _kept(report, settings) else {}, report)
    return report


def _exported(
    path: Path, report: dict[str, Any], form: Form, settings: Settings, samples: Path | None, out: Path
) -> dict[str, Any]:
    """Write the ONNX model in another format; the report tells of both steps."""
    given = sorted(samples.glob("*.npz")) if samples else []
    with tempfile.TemporaryDirectory(prefix="triton-unified-") as scratch:
        made = export(path, report["source"], form, settings, given, Path(scratch))
        report |= {"failure": made["failure"]} if "failure" in made else {}
        report |= {"export": made, "passed": report["passed"] and made["passed"]}
        there = {file.name: file for file in Path(scratch).iterdir()}
        _write(out, there if _kept(report, settings) else {}, report)
    return report


def _kept(report: Mapping[str, Any], settings: Settings) -> bool:
    return bool(report["passed"]) or settings.verify == "warn"


def _converted(source: Path, settings: Settings, samples: Path | None, cache: Cache) -> tuple[Path, dict[str, Any]]:
    folder, chosen = (source, None) if source.is_dir() else (source.parent, source.name)
    found = find_source(source.name, folder, cache.store.memo, chosen)
    refuse_unused(found.format, settings, found.label)
    lookup = Lookup(found.label, Snapshot(cache.store.memo, found.files), settings, cache, Report())
    made = _of_onnx(found, lookup) if found.format == "onnx" else _of_others(found, samples, lookup)
    return made.path, {
        "source": source.name,
        "format": found.format,
        "files": {path.relative_to(folder).as_posix(): cache.store.memo.digest(path) for path in found.files},
        "signature": made.signature_facts(),
        **_graph_facts(made.path),
        **made.report,
    }


def _of_onnx(source: Source, lookup: Lookup) -> _Found:
    """ONNX needs no conversion: repaired where an engine would not take it, else the file itself."""
    canonical = canonical_of_onnx(source, lookup.settings, lookup, Reference(source.label, lookup.settings))
    nothing = {"versions": {}, "seconds": 0.0, "peak_rss_mb": 0, "reference": None, "verified": [], "passed": True}
    return _Found(canonical.path, canonical.signature, None, {**nothing, "notes": list(canonical.notes)})


def _of_others(source: Source, samples: Path | None, lookup: Lookup) -> _Found:
    toolchain = toolchain_for(source.format)
    if toolchain is None:
        raise SourceError(
            f"{source.label}: {source.format} models are not converted",
            "no toolchain takes them",
            "Export the model as ONNX",
        )
    form = foreign(source, samples, lookup.settings, alone(source.label), lookup.cache.store.memo)
    passed, failure = True, ""
    try:
        made = converted(form, toolchain, lookup, Reference(source.label, lookup.settings))
    except VerificationError as error:
        passed, failure = False, str(error)
        # Once more, to have the errors of every output: the conversion itself is in the cache.
        unjudged = dataclasses.replace(lookup.settings, verify="report")
        form = dataclasses.replace(form, settings=unjudged)
        lookup = dataclasses.replace(lookup, settings=unjudged)
        made = converted(form, toolchain, lookup, Reference(source.label, unjudged))
    rows = made.facts["verified"]
    report = {
        "framework": made.conversion["framework"],
        "converter": made.conversion["converter"],
        "versions": {**made.conversion["versions"], "onnxruntime": runtime_version()},
        "seconds": made.conversion["seconds"],
        "peak_rss_mb": made.conversion["peak_rss_mb"],
        "notes": made.facts["notes"],
        "reference": made.facts["reference"],
        "verified": rows,
        "passed": passed and all(row["passed"] for row in rows),
        **({"failure": failure} if failure else {}),
    }
    return _Found(made.path, Signature.from_json(made.facts["signature"]), form.description, report)


def _graph_facts(path: Path) -> dict[str, Any]:
    """The opset, and how many nodes there are, by operator; those in branches and bodies of loops too."""
    model = read_model(path)
    counts = census(model)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    return {"opset": opset, "nodes": counts.total(), "operators": dict(counts.most_common())}


def _row(spec: TensorSpec, inner: Mapping[str, str]) -> dict[str, Any]:
    shape = None if spec.shape is None else [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "dtype": spec.dtype, "shape": shape, "tensor": inner.get(spec.name, spec.name)}


def require_usable(out: Path) -> None:
    """Refuse a folder for results that cannot take them.

    Raises:
        Refused: it is no folder, there are files in it that no conversion wrote, or nothing can be written beside it.
    """
    if out.exists() and not (out.is_dir() and ((out / REPORT).is_file() or not any(out.iterdir()))):
        raise Refused(
            f"{out} cannot take the model",
            "it holds other files" if out.is_dir() else "it is a file",
            "Name a folder that is empty or not there yet, or one of an earlier conversion",
        )
    parent = next(path for path in out.parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        why = "no file may be made there" if parent.is_dir() else "it is no folder"
        raise Refused(f"{out} cannot be written", f"{parent}: {why}", "Name a folder elsewhere")


def write_folder(out: Path, model: Path, report: Mapping[str, Any]) -> None:
    """Write an ONNX model with its external data, and a report, as `convert` does.

    Raises:
        Refused: the disk is full, or the folder cannot be written.
        SourceError: the model's data has the name of the model that is written.
    """
    _write(out, files_as(model, MODEL), report)


def _write(out: Path, files: Mapping[str, Path], report: Mapping[str, Any]) -> None:
    """Write the files, whole or not at all; those of an earlier conversion go.

    Raises:
        Refused: the disk is full, or the folder cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            for relative, path in files.items():
                (made / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, made / relative)
            (made / REPORT).write_text(json.dumps(report, indent=2) + "\n")
            if out.exists():
                out.rename(Path(scratch) / "earlier")
            made.rename(out)
    except OSError as error:
        raise Refused(
            f"{out} cannot be written", error.strerror or str(error), "Name a folder that can be, or make room"
        ) from None
