"""A canonical model simplified, where an engine gains by it: it is the canonical model from there on."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from unified_backend.cache import Key
from unified_backend.engines import Canonical
from unified_backend.engines.apart import ask_apart
from unified_backend.engines.reference import open_reference
from unified_backend.errors import EngineError, SourceError, UnifiedError
from unified_backend.forms.profiled import profiles_wanted
from unified_backend.forms.reference import Reference
from unified_backend.graph.saving import MODEL
from unified_backend.lookups import Lookup
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings
from unified_backend.tensors import Signature
from unified_backend.verification import samples_of, verify

__all__ = ["TOLERANCE", "Simplified", "key_of_simplified", "pays", "simplified"]

logger = logging.getLogger(__name__)

_RECIPE = 1  # raised when the same model would be simplified or judged otherwise
TOLERANCE = 1e-5  # relative to an output's largest value: what summing in another order changes
_CHILD = "unified_backend.graph.simplifying"


@dataclasses.dataclass(frozen=True)
class Simplified:
    """What came of it.

    Attributes:
        canonical: the simplified model, or the one that was given.
        reference: of that.
        note: what was done, or why nothing; empty where there was nothing to do.
        seconds: that it took when it was made.
    """

    canonical: Canonical
    reference: Reference
    note: str
    seconds: float = 0.0


def pays(settings: Settings, unsimplified: bool) -> bool:
    """Whether a load simplifies an ONNX model.

    TensorRT-RTX parses 14 to 41 % fewer layers of PP-OCR's networks and basic-pitch, and builds most of them 10 to 40 %
    quicker; DenseNet-121 with weights that its graph computes, 5.6 s before and 1.7 after. ONNX Runtime and OpenVINO on
    the CPU do the same by themselves: all ran as fast either way (0.94 to 1.06). benchmarks/graph.py measured both.

    Args:
        unsimplified: the source is ONNX, or fragments were composed onto it; what a toolchain wrote is simplified.
    """
    return unsimplified and settings.graph_optimization != "none" and profiles_wanted(settings)


def simplified(canonical: Canonical, lookup: Lookup, reference: Reference) -> Simplified:
    """The model simplified, if it computes the same; else as it is. It always computes what it did.

    Args:
        reference: of the model that is given.

    Raises:
        NotCachedError: the settings want what is cached, and it is not.
        SourceChangedError: the source has changed meanwhile.
    """
    made = _looked_up(canonical, lookup, reference)
    lookup.report.notes.extend(filter(None, [made.note]))
    return made


def _looked_up(canonical: Canonical, lookup: Lookup, reference: Reference) -> Simplified:
    if importlib.util.find_spec("onnxsim") is None:
        return Simplified(canonical, reference, "not simplified: the package onnxsim is not installed")

    def make(folder: Path) -> dict[str, Any]:
        began = time.monotonic()
        facts = _made(canonical, lookup.settings, reference, folder)
        if facts["why"] is not None:
            for file in folder.iterdir():
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        if facts["why"]:
            logger.warning('not simplified model=%s reason="%s"', canonical.label, facts["why"])
        return {**facts, "seconds": round(time.monotonic() - began, 3)}

    key = key_of_simplified(canonical.digest, canonical.fixed)
    entry = lookup(key, make)
    why, seconds = entry.facts["why"], entry.facts["seconds"]
    if why is not None:
        return Simplified(canonical, reference, f"not simplified: {why}" if why else "", seconds)
    model = dataclasses.replace(canonical, path=entry.path / MODEL, digest=key.digest)
    note = f"simplified: {entry.facts['before']} nodes before, {entry.facts['after']} after"
    return Simplified(model, Reference(canonical.label, lookup.settings), note, seconds)


def key_of_simplified(canonical: str, fixed: FixedDims) -> Key:
    """Of the simplified model: what wrote it, and the dims that it is tried with.

    Args:
        canonical: digest of the canonical model's key.
        fixed: the dims that the config fixes.
    """
    return Key(
        "simplified",
        {
            "canonical": canonical,
            "fixed_dims": {name: {str(axis): size for axis, size in row.items()} for name, row in fixed.items()},
            "onnxsim": importlib.metadata.version("onnxsim"),
            "recipe": _RECIPE,
        },
    )


def _made(canonical: Canonical, settings: Settings, reference: Reference, folder: Path) -> dict[str, Any]:
    """Nodes before and after; and why nothing is to be kept of what is in the folder, or None."""
    job = {"label": canonical.label, "path": str(canonical.path.absolute()), "folder": str(folder)}
    what = f"{canonical.label}: the model is not simplified"
    try:
        facts = ask_apart(_CHILD, job, settings, what, "Set parameter `graph_optimization` to `none`")
        if facts["why"] is None:
            facts["why"] = _difference(canonical, settings, reference, folder / MODEL)
    except EngineError as error:
        return {"before": 0, "after": 0, "why": error.why}
    return facts


def _difference(canonical: Canonical, settings: Settings, reference: Reference, path: Path) -> str | None:
    """Why the model in a file cannot take the canonical one's place, or None."""
    given = reference.runner(canonical)
    samples = samples_of(given, canonical.fixed)
    if not samples:
        return "no sample input could be made that runs, so that nothing would be proven"
    try:
        runner = open_reference(canonical.label, path, settings)[0]
    except SourceError as error:
        return error.why
    try:
        if (ends := _ends(runner.signature)) != _ends(given.signature):
            return f"its inputs and outputs would be {ends}"
        rows = verify(runner, samples, TOLERANCE)
    except UnifiedError as error:
        return error.why
    finally:
        runner.close()
    worst = max((row for row in rows if not row.passed), key=lambda row: row.max_rel, default=None)
    if worst is None:
        return None
    at = "" if worst.batch is None else f" at batch {worst.batch}"
    return f"output {worst.output}{at} would change by {worst.max_rel:.1e} of its largest value, over {TOLERANCE:.0e}"


def _ends(signature: Signature) -> list[tuple[str, str]]:
    return [(spec.name, spec.dtype) for spec in (*signature.inputs, *signature.outputs)]
