"""ONNX Runtime on the CPU: its optimised graph is the built engine, with the weights beside it to be mapped."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified_backend import hosts
from unified_backend.engines import Built, Canonical, Threads
from unified_backend.engines.bfloat16 import bfloat16_bits, bfloat16_value
from unified_backend.engines.sessions import (
    PROVIDERS,
    exceptions,
    library_digests,
    open_session,
    reason_of,
    runtime_version,
    session_options,
    utf8_path,
)
from unified_backend.errors import CacheFullError, EngineError, RequestError, SourceError
from unified_backend.gpus import Gpu
from unified_backend.settings import Settings
from unified_backend.tensors import Array, Signature

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxRuntime", "OnnxRuntimeRunner"]

_RECIPE = 1  # raised when the same key fields would give other files or facts
_MODEL, _WEIGHTS = "model.onnx", "weights.bin"
# Times the load without it: 5 to 7 for PP-OCR's networks, 1.0 to 1.9 for those with fixed shapes.
_REUSE_COSTS = 3.0
_NO_KERNEL = "Could not find an implementation for"
# What ONNX Runtime says of a full disk, about the weights and about the graph.
_NOT_WRITTEN = ("Failed to write", "serialization failed")


class OnnxRuntime:
    """The ONNX Runtime CPU rung: takes every ONNX model whose operators it knows."""

    name = "onnxruntime"
    accepts = frozenset({"onnx"})

    def unusable(self, gpu: Gpu | None) -> str | None:
        """Why ONNX Runtime cannot be used here, or None."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "the package onnxruntime (or onnxruntime-gpu) is not installed"
        return None

    def key_fields(self, settings: Settings) -> dict[str, Any]:
        """ONNX Runtime's version, what steers its optimiser, and the instructions its layouts are chosen for."""
        return {
            "onnxruntime": runtime_version(),
            "providers": PROVIDERS,
            "graph_optimization": settings.graph_optimization,
            "session_options": dict(settings.session_options),
            "custom_op_library": library_digests(settings),
            "cpu": hosts.cpu_features(),
            "recipe": _RECIPE,
        }

    def build(self, canonical: Canonical, settings: Settings, folder: Path) -> dict[str, Any]:
        """Optimise the graph once and save it.

        The weights go into a file of their own, which is mapped at load instead of parsed: VGG-19 (489 MB) loads in
        0.8 s against 2.3 s with the weights inside the model file. Prepacked weights are not saved: ONNX Runtime
        1.31.1 crashes while it writes those of some models.
        """
        options = session_options(settings, Threads(intra_op=1))
        if canonical.precision == "fp8":
            # The optimiser would write QLinearConv, which has no FP8, and then refuse the graph.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.optimized_model_filepath = utf8_path(folder / _MODEL)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _WEIGHTS)
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        try:
            open_session(canonical.label, canonical.path, options)
        except SourceError as error:
            if any(words in error.why for words in _NOT_WRITTEN):
                raise CacheFullError(
                    f"{canonical.label}: the engine could not be written to {folder}",
                    error.why,
                    "Free space there, or choose another folder with TRITON_UNIFIED_CACHE",
                ) from None
            if canonical.precision == "bf16" and _NO_KERNEL in error.why:
                raise EngineError(
                    f"{canonical.label}: ONNX Runtime cannot run the model in BF16 on a CPU",
                    f"it has no BF16 kernels for CPUs ({error.why})",
                    "Take `fp16`, or a GPU",
                ) from None
            raise
        return {"mem_reuse": _reuse_pays(canonical.label, folder / _MODEL, settings)}

    def load(
        self, canonical: Canonical, built: Built | None, settings: Settings, threads: Threads
    ) -> OnnxRuntimeRunner:
        """Load the optimised graph; nothing is optimised again. If it was not built, optimise the canonical model."""
        if built:
            options = _as_it_is(settings, threads, reuse=bool(built.facts["mem_reuse"]))
            session = open_session(canonical.label, built.folder / _MODEL, options)
        else:
            session = open_session(canonical.label, canonical.path, session_options(settings, threads))
        return OnnxRuntimeRunner(session, canonical.signature, shrink_arena=settings.arena_shrinkage)


def _as_it_is(settings: Settings, threads: Threads, reuse: bool) -> onnxruntime.SessionOptions:
    """Options that load an optimised graph unchanged.

    Args:
        reuse: plan which tensors may lie in one another's memory.
    """
    import onnxruntime

    options = session_options(settings, threads)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_reuse = reuse
    return options


def _reuse_pays(label: str, path: Path, settings: Settings) -> bool:
    """Whether planning the reuse of memory is worth its time at every load.

    The planner compares each tensor with all that are free so far. Where the shapes are not known before a run, none
    match and all pile up: it took 130 of the 150 ms in which PP-OCR's networks load, and without it they ran as fast
    (medians 0.96 to 1.02) in as much memory. Where it finds matches it is quick.
    """
    took = []
    for reuse in (True, False):
        began = time.perf_counter()
        open_session(label, path, _as_it_is(settings, Threads(intra_op=1), reuse))
        took.append(time.perf_counter() - began)
    return took[0] < _REUSE_COSTS * took[1]


class OnnxRuntimeRunner:
    """A session that answers requests."""

    def __init__(self, session: onnxruntime.InferenceSession, signature: Signature, shrink_arena: bool = False) -> None:
        import onnxruntime

        self.signature = signature
        self._session = session
        # The binding under InferenceSession.run, whose own check of the input names takes 2 us of a tiny model's 13.
        self._plain_run = session._sess.run
        self._exceptions = exceptions()
        self._run_options = onnxruntime.RunOptions()  # kept: without one, each run makes its own
        if shrink_arena:
            self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._bfloat16 = frozenset(
            spec.name for spec in (*signature.inputs, *signature.outputs) if spec.dtype == "BF16"
        )

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The outputs asked for, in that order; see `Runner.run`."""
        try:
            if into:
                return self._run_bound(feeds, outputs, into)
            if self._bfloat16:
                return self._run_values(feeds, outputs)
            return self._plain_run(outputs, feeds, self._run_options)  # type: ignore[no-any-return]
        except self._exceptions as error:
            reason = reason_of(error)
            if "allocate" in reason or "bad_alloc" in reason:
                raise EngineError("out of memory", reason, "Lower max_batch_size or give the server more") from None
            raise RequestError(
                "the model does not take this request", reason, "Check its shapes and values against the model"
            ) from None

    def close(self) -> None:
        """Free the session."""
        del self._session, self._plain_run

    def _run_bound(self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array]) -> list[Array]:
        """Run with some outputs written straight into given memory."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in outputs:
            if name in into:
                target = into[name]
                binding.bind_output(name, "cpu", 0, target.dtype.type, target.shape, target.ctypes.data)
            else:
                binding.bind_output(name)
        self._session.run_with_iobinding(binding, self._run_options)
        values = binding.get_outputs()
        return [into[name] if name in into else value.numpy() for name, value in zip(outputs, values, strict=True)]

    def _run_values(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Run a model with bfloat16 tensors, which NumPy has not: they go in and out as uint16 of the same bits."""
        import onnxruntime

        given = {
            name: bfloat16_value(array) if name in self._bfloat16 else onnxruntime.OrtValue.ortvalue_from_numpy(array)
            for name, array in feeds.items()
        }
        results = self._session.run_with_ort_values(outputs, given, self._run_options)
        return [
            bfloat16_bits(result) if name in self._bfloat16 else result.numpy()
            for name, result in zip(outputs, results, strict=True)
        ]
