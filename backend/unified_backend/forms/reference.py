"""Engines by name, and a form opened in the one that others are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unified_backend import hosts
from unified_backend.conversion.normalise import normalise
from unified_backend.engines import Canonical, Engine, Runner, Threads
from unified_backend.engines.dali import DaliEngine
from unified_backend.engines.litert import LiteRt
from unified_backend.engines.mnn import MnnEngine
from unified_backend.engines.ncnn import NcnnEngine
from unified_backend.engines.onnxruntime import OnnxRuntime
from unified_backend.engines.onnxruntime_cuda import OnnxRuntimeCuda
from unified_backend.engines.openvino import OpenVino
from unified_backend.engines.reference import open_reference
from unified_backend.engines.tensorrt import TensorRt, TensorRtRtx
from unified_backend.engines.third_party import third_party_engines
from unified_backend.formats import Source
from unified_backend.lookups import Lookup
from unified_backend.model_keys import canonical_key
from unified_backend.settings import Settings
from unified_backend.tensors import Signature

__all__ = ["ENGINES", "PROFILED", "Reference", "canonical_of_onnx"]

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        TensorRt(),
        TensorRtRtx(),
        OnnxRuntimeCuda(),
        OnnxRuntime(),
        OpenVino(),
        LiteRt(),
        MnnEngine(),
        NcnnEngine(),
        DaliEngine(),
    )
}
# Installed on purpose, they come first.
ENGINES = {engine.name: engine for engine in third_party_engines(ENGINES)} | ENGINES
PROFILED = ("tensorrt", "tensorrt_rtx")  # those that build for the shapes of optimization profiles


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
            return self.onnx(form.judge or form.path)[0]
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
