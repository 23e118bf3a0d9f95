"""A source as an ONNX file with a report: the load's own way to its canonical model, standing alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend.cache import Cache, Snapshot
from unified_backend.conversion.interface import graphs_of
from unified_backend.errors import Refused, SourceError, VerificationError
from unified_backend.formats import FORMATS, Source, find_source
from unified_backend.formats.onnx import read_model
from unified_backend.forms import Direct, Reference, canonical_of_onnx
from unified_backend.loading import direct
from unified_backend.lookups import Lookup, Report
from unified_backend.settings import Settings
from unified_backend.tensors import Signature, TensorSpec
from unified_backend.toolchains.catalogue import toolchain_for

__all__ = ["MODEL", "REPORT", "convert"]

MODEL, REPORT = "model.onnx", "report.json"


@dataclasses.dataclass(frozen=True)
class _Found:
    """A converted model where it lies, and what the report says of it."""

    path: Path
    signature: Signature
    inner: Mapping[str, str]
    report: Mapping[str, Any]


def convert(source: Path, settings: Settings, samples: Path | None, cache: Cache, out: Path) -> dict[str, Any]:
    """Write `model.onnx`, its external data if it has any, and `report.json` into a folder.

    A model that does not compute what its source does leaves a report alone, which says by how much.

    Args:
        source: a file, or a folder that holds one model.
        samples: folder with the user's samples, `.npz` files.
        cache: what it holds is not converted again, and what is converted stays there for loads.
        out: made if it is not there; of an earlier conversion, its files are replaced.

    Returns:
        the report.

    Raises:
        Refused: `out` holds other files, or cannot be written.
        SourceError: no model, several, or one that cannot be read.
        ConfigError: a parameter names what the model or the converter has not got.
        ToolchainError: the toolchain that is needed is missing.
        ConversionError: it cannot be converted.
    """
    _refuse_foreign_files(out)
    folder, chosen = (source, None) if source.is_dir() else (source.parent, source.name)
    found = find_source(source.name, folder, cache.store.memo, chosen)
    lookup = Lookup(found.label, Snapshot(cache.store.memo, found.files), settings, cache, Report())
    made = _of_onnx(found, lookup) if found.format == "onnx" else _of_others(found, samples, lookup)
    report = {
        "format": found.format,
        "files": {path.relative_to(folder).as_posix(): cache.store.memo.digest(path) for path in found.files},
        "signature": {
            side: [_row(spec, made.inner) for spec in getattr(made.signature, side)] for side in ("inputs", "outputs")
        },
        **_graph_facts(made.path),
        **made.report,
    }
    try:
        _write(out, made.path if report["passed"] or settings.verify == "warn" else None, report)
    except OSError as error:
        raise Refused(
            f"{out} cannot be written", error.strerror or str(error), "Name a folder that can be, or make room"
        ) from None
    return report


def _of_onnx(source: Source, lookup: Lookup) -> _Found:
    """ONNX needs no conversion: repaired where an engine would not take it, else the file itself."""
    canonical = canonical_of_onnx(source, lookup.settings, lookup, Reference(source.label, lookup.settings))
    nothing = {"versions": {}, "seconds": 0.0, "peak_rss_mb": 0, "reference": None, "verified": [], "passed": True}
    return _Found(canonical.path, canonical.signature, {}, {**nothing, "notes": list(canonical.notes)})


def _of_others(source: Source, samples: Path | None, lookup: Lookup) -> _Found:
    toolchain = toolchain_for(source.format)
    if toolchain is None:
        raise SourceError(
            f"{source.label}: {source.format} models are not converted",
            "no toolchain takes them",
            "Export the model as ONNX",
        )
    form = direct(source, samples, lookup.settings, {}, lookup.cache.store.memo)
    passed, failure = True, ""
    try:
        made = form.convert(toolchain, lookup, Reference(source.label, lookup.settings))
    except VerificationError as error:
        passed, failure = False, str(error)
        # Once more, to have the errors of every output: the conversion itself is in the cache.
        unjudged = dataclasses.replace(lookup.settings, verify="report")
        again: Direct = dataclasses.replace(form, settings=unjudged)
        lookup = dataclasses.replace(lookup, settings=unjudged)
        made = again.convert(toolchain, lookup, Reference(source.label, unjudged))
    rows = made.facts["verified"]
    report = {
        "framework": made.conversion["framework"],
        "converter": made.conversion["converter"],
        "versions": made.conversion["versions"],
        "seconds": made.conversion["seconds"],
        "peak_rss_mb": made.conversion["peak_rss_mb"],
        "notes": made.facts["notes"],
        "reference": made.facts["reference"],
        "verified": rows,
        "passed": passed and all(row["passed"] for row in rows),
        **({"failure": failure} if failure else {}),
    }
    return _Found(made.path, Signature.from_json(made.facts["signature"]), form.description.inner, report)


def _graph_facts(path: Path) -> dict[str, Any]:
    """The opset, and how many nodes there are, by operator; those in branches and bodies of loops too."""
    model = read_model(path)
    counts = Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for graph in graphs_of(model.graph)
        for node in graph.node
    )
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    return {"opset": opset, "nodes": counts.total(), "operators": dict(counts.most_common())}


def _row(spec: TensorSpec, inner: Mapping[str, str]) -> dict[str, Any]:
    shape = None if spec.shape is None else [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "dtype": spec.dtype, "shape": shape, "tensor": inner.get(spec.name, spec.name)}


def _refuse_foreign_files(out: Path) -> None:
    """
    Raises:
        Refused: it is no folder, or there are files in it that no conversion wrote.
    """
    if not out.exists() or (out.is_dir() and ((out / REPORT).is_file() or not any(out.iterdir()))):
        return
    raise Refused(
        f"{out} cannot take the model",
        "it holds other files" if out.is_dir() else "it is a file",
        "Name a folder that is empty or not there yet, or one of an earlier conversion",
    )


def _write(out: Path, model: Path | None, report: Mapping[str, Any]) -> None:
    """Write the files, whole or not at all; those of an earlier conversion go."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        if model is not None:
            for relative, path in _files(model).items():
                (made / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, made / relative)
        (made / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        if out.exists():
            out.rename(Path(scratch) / "earlier")
        made.rename(out)


def _files(model: Path) -> dict[str, Path]:
    """Name in the folder -> file; external data under the name that the model has for it."""
    companions: Sequence[str] = FORMATS["onnx"].companions(model)
    if MODEL in companions:
        raise SourceError(
            f"{model.name} has its external data in {MODEL}",
            "the model itself is to be written under that name",
            "Export it again with another name for its data",
        )
    return {MODEL: model, **{name: model.parent / name for name in companions}}
