"""ONNX Runtime on a CUDA GPU: fixed shapes run in buckets with CUDA graphs, others as they come."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_backend.engines import Built, Canonical, Runner, Threads
from unified_backend.engines.cuda import Cuda, cuda_unusable
from unified_backend.engines.device import DeviceRunner, buckets_up_to
from unified_backend.engines.onnxruntime import OnnxRuntimeRunner
from unified_backend.engines.sessions import (
    exceptions,
    library_digests,
    open_session,
    reason_of,
    runtime_version,
    session_options,
)
from unified_backend.errors import EngineError, RequestError, SourceError
from unified_backend.gpus import Gpu, driver, why_none
from unified_backend.samples import recipes
from unified_backend.settings import Settings
from unified_backend.tensors import Signature, TensorSpec

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxRuntimeCuda"]

logger = logging.getLogger(__name__)

_PROVIDER = "CUDAExecutionProvider"
_ERRORS, _FATAL = 3, 4  # of ONNX Runtime's logger
_RECIPE = 1  # raised when the same key fields would give other facts


class OnnxRuntimeCuda:
    """The ONNX Runtime CUDA rung: takes every ONNX model whose operators ONNX Runtime knows."""

    name = "onnxruntime_cuda"
    accepts = frozenset({"onnx"})

    def unusable(self, gpu: Gpu | None) -> str | None:
        """Why there is no CUDA here for ONNX Runtime, or None."""
        if gpu is None:
            return why_none()
        if importlib.util.find_spec("onnxruntime") is None:
            return "the package onnxruntime-gpu is not installed"
        import onnxruntime

        if _PROVIDER not in onnxruntime.get_available_providers():
            return f"the onnxruntime here is built without CUDA ({', '.join(onnxruntime.get_available_providers())})"
        return cuda_unusable()

    def key_fields(self, settings: Settings) -> dict[str, Any]:
        """Versions, the kind of GPU, and what steers its kernels."""
        assert settings.gpu is not None
        return {
            "onnxruntime": runtime_version(),
            "gpu": settings.gpu.name,
            "compute_capability": list(settings.gpu.compute_capability),
            "driver": list(driver().cuda or ()),
            "graph_optimization": settings.graph_optimization,
            "session_options": dict(settings.session_options),
            "custom_op_library": library_digests(settings),
            "tf32": settings.tf32,
            "prefer_nhwc": settings.prefer_nhwc,
            "conv_search": settings.cudnn_conv_algo_search,
            "recipe": _RECIPE,
        }

    def build(self, canonical: Canonical, settings: Settings, folder: Path) -> dict[str, Any]:
        """Find the layout that the model runs in; no file is written, for ONNX Runtime cannot save a CUDA layout.

        Convolutions run up to 2.6 times as fast with the channels last, and some operators have no such kernel.
        """
        reason = ""
        for nhwc in (True, False) if settings.prefer_nhwc is None else (settings.prefer_nhwc,):
            try:
                session = _session(canonical, settings, Threads(1), nhwc, None)
                runner = OnnxRuntimeRunner(session, canonical.signature)
                _require_answer(canonical, runner)
                return {"prefer_nhwc": nhwc}
            except (EngineError, RequestError, SourceError) as error:
                reason = error.why
        raise EngineError(
            f"{canonical.label}: ONNX Runtime's CUDA provider does not take the model", reason, "Choose another engine"
        )

    def load(self, canonical: Canonical, built: Built | None, settings: Settings, threads: Threads) -> Runner:
        """A session on the instance's GPU; with fixed shapes in buckets up to max_batch_size."""
        assert settings.gpu is not None
        facts = built.facts if built else self.build(canonical, settings, Path())
        cuda = Cuda(settings.gpu.index)
        cuda.enter()
        stream = cuda.stream()
        session = _session(canonical, settings, threads, bool(facts["prefer_nhwc"]), stream)
        plain = OnnxRuntimeRunner(session, canonical.signature, shrink_arena=settings.arena_shrinkage)
        rows = _row_shapes(canonical, plain)
        if rows is None:
            logger.info('shapes vary model=%s next="no buckets, CUDA graphs or batches in flight"', canonical.label)
            return plain
        buckets = buckets_up_to(canonical.max_batch_size, settings.batch_buckets) if canonical.max_batch_size else ()
        engine = _Bound(session, canonical.signature, rows, settings.gpu.index)
        runner = DeviceRunner(
            cuda, stream, engine, canonical.signature, rows, buckets, settings.contexts, settings.cuda_graph
        )
        runner.prepare()
        logger.info(
            "prepared model=%s gpu=%d buckets=%s contexts=%d cuda_graphs=%s nhwc=%s tf32=%s",
            canonical.label,
            settings.gpu.index,
            ",".join(map(str, runner.buckets)) or "none",
            settings.contexts,
            runner.graphs,
            facts["prefer_nhwc"],
            settings.tf32,
        )
        return runner


class _Bound:
    """A session whose runs are bound to buffers at fixed addresses."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        signature: Signature,
        rows: Mapping[str, tuple[int, ...]],
        device: int,
    ) -> None:
        import onnxruntime

        self._session, self._signature, self._rows, self._device = session, signature, rows, device
        self._options = onnxruntime.RunOptions()
        # The run is put on the stream; whoever wants its outputs waits for an event on it.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def bind(
        self, rows: int, inputs: Mapping[str, int], outputs: Mapping[str, int], context: int
    ) -> Callable[[], None]:
        """See `Bindable.bind`."""
        binding = self._session.io_binding()
        for specs, addresses, bind in (
            (self._signature.inputs, inputs, binding.bind_input),
            (self._signature.outputs, outputs, binding.bind_output),
        ):
            for spec in specs:
                shape = (rows, *self._rows[spec.name]) if rows else self._rows[spec.name]
                bind(spec.name, "cuda", self._device, spec.numpy.type, shape, addresses[spec.name])

        def run() -> None:
            try:
                self._session.run_with_iobinding(binding, self._options)
            except exceptions() as error:
                raise EngineError("ONNX Runtime failed on the GPU", reason_of(error), "See the server's log") from None

        return run

    def close(self) -> None:
        """Free the session."""
        del self._session


def _session(
    canonical: Canonical, settings: Settings, threads: Threads, nhwc: bool, stream: Any
) -> onnxruntime.InferenceSession:
    """
    Args:
        stream: that it computes on; None for one of its own.

    Raises:
        EngineError: CUDA does not start.
        SourceError: ONNX Runtime does not take the model.
    """
    import onnxruntime

    assert settings.gpu is not None
    onnxruntime.set_default_logger_severity(_ERRORS)
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # those that the wheels of CUDA and cuDNN brought, where no LD_LIBRARY_PATH has them
    # Trying every algorithm takes 1.0 to 1.5 s at each new shape (H100, ResNet-50): where shapes vary, a guess.
    search = "EXHAUSTIVE" if _fixed(canonical) else "HEURISTIC"
    options = {
        "device_id": str(settings.gpu.index),
        "use_tf32": str(int(settings.tf32)),
        "prefer_nhwc": str(int(nhwc)),
        "cudnn_conv_algo_search": settings.cudnn_conv_algo_search or search,
    }
    if settings.gpu_mem_limit:
        options["gpu_mem_limit"] = str(settings.gpu_mem_limit)
    if stream is not None:
        options["user_compute_stream"] = str(int(stream))
    session = open_session(
        canonical.label,
        canonical.path,
        session_options(settings, threads),
        [(_PROVIDER, options), "CPUExecutionProvider"],
    )
    if session.get_providers()[0] != _PROVIDER:
        raise EngineError(
            f"{canonical.label}: ONNX Runtime could not start CUDA",
            "a library that its CUDA provider needs is missing or of another version; its own words are in the log",
            "Install the CUDA and cuDNN that this onnxruntime-gpu was built for",
        )
    # A run that tries convolutions logs an error for each that has no plan: hundreds, and no user can act on one.
    onnxruntime.set_default_logger_severity(_FATAL)
    return session


def _fixed(canonical: Canonical) -> bool:
    """Whether all dimensions of the inputs are known, but for the batch."""
    first = 1 if canonical.max_batch_size else 0
    return all(_row(canonical, spec, first) is not None for spec in canonical.signature.inputs)


def _row(canonical: Canonical, spec: TensorSpec, first: int) -> tuple[int, ...] | None:
    """An input's sizes from axis `first` on, as the model or the config fixes them; None where neither does."""
    fixed = canonical.fixed.get(spec.name, {})
    sizes = [fixed.get(axis, size) for axis, size in enumerate(spec.shape or ())][first:]
    known = tuple(size for size in sizes if isinstance(size, int))
    return known if spec.shape is not None and len(known) == len(sizes) else None


def _row_shapes(canonical: Canonical, runner: OnnxRuntimeRunner) -> dict[str, tuple[int, ...]] | None:
    """Of each input and output the shape of a row, or of the whole without a batch dimension; None if they vary."""
    signature, first = canonical.signature, 1 if canonical.max_batch_size else 0
    held = all(spec.dtype not in ("STRING", "BF16") for spec in (*signature.inputs, *signature.outputs))
    if not held or not signature.inputs or not _fixed(canonical):
        return None
    inputs = {spec.name: _row(canonical, spec, first) or () for spec in signature.inputs}
    names = [spec.name for spec in signature.outputs]
    seen = []
    for rows in (1, 2) if first else (1,):
        feeds = {
            spec.name: np.zeros((rows, *inputs[spec.name]) if first else inputs[spec.name], spec.numpy)
            for spec in signature.inputs
        }
        shapes = [array.shape for array in runner.run(feeds, names)]
        if first and any(shape[:1] != (rows,) for shape in shapes):
            return None
        seen.append([shape[first:] for shape in shapes])
    return {**inputs, **dict(zip(names, seen[0], strict=True))} if seen[0] == seen[-1] else None


def _require_answer(canonical: Canonical, runner: Runner) -> None:
    """
    Raises:
        RequestError: the layout does not run.
    """
    names = [spec.name for spec in canonical.signature.outputs]
    for recipe in recipes(canonical.signature, canonical.fixed, 1 if canonical.max_batch_size else None):
        runner.run(recipe.feeds(canonical.signature, canonical.fixed, 1 if canonical.max_batch_size else None), names)
        return
