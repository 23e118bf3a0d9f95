"""ONNX Runtime on the CPU: its optimised graph is the built engine, with the weights beside it to be mapped."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_backend import hosts
from unified_backend.engines import Canonical, Threads
from unified_backend.errors import CacheError, ConfigError, EngineError, RequestError, SourceError
from unified_backend.formats.onnx import read_model
from unified_backend.settings import Settings
from unified_backend.tensors import Array, Signature, TensorSpec, data_type

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "OnnxRuntime",
    "OnnxRuntimeRunner",
    "bfloat16_bits",
    "bfloat16_value",
    "library_digests",
    "open_reference",
]

_MODEL, _WEIGHTS = "model.onnx", "weights.bin"
# What ONNX Runtime says of a full disk, about the weights and about the graph.
_NOT_WRITTEN = ("Failed to write", "serialization failed")
_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_PROVIDERS = ["CPUExecutionProvider"]


class OnnxRuntime:
    """The ONNX Runtime CPU rung: takes every ONNX model whose operators it knows."""

    name = "onnxruntime"

    def unusable(self) -> str | None:
        """Why ONNX Runtime cannot be used here, or None."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "the package onnxruntime (or onnxruntime-gpu) is not installed"
        return None

    def key_fields(self, settings: Settings) -> dict[str, Any]:
        """ONNX Runtime's version, what steers its optimiser, and the instructions its layouts are chosen for."""
        import onnxruntime

        return {
            "onnxruntime": onnxruntime.__version__,
            "providers": _PROVIDERS,
            "graph_optimization": settings.graph_optimization,
            "session_options": dict(settings.session_options),
            "custom_op_library": library_digests(settings),
            "cpu": hosts.cpu_features(),
        }

    def build(self, canonical: Canonical, settings: Settings, folder: Path) -> dict[str, Any]:
        """Optimise the graph once and save it.

        The weights go into a file of their own, which is mapped at load instead of parsed: VGG-19 (489 MB) loads in
        0.8 s against 2.3 s with the weights inside the model file. Prepacked weights are not saved: ONNX Runtime
        1.31.1 crashes while it writes those of some models.
        """
        options = _session_options(settings, Threads(intra_op=1))
        options.optimized_model_filepath = _utf8(folder / _MODEL)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _WEIGHTS)
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        try:
            _open(canonical.label, canonical.path, options)
        except SourceError as error:
            if any(words in error.why for words in _NOT_WRITTEN):
                raise CacheError(
                    f"{canonical.label}: the engine could not be written to {folder}",
                    error.why,
                    "Free space there, or choose another folder with TRITON_UNIFIED_CACHE",
                ) from None
            raise
        return {}

    def load(self, canonical: Canonical, folder: Path, settings: Settings, threads: Threads) -> OnnxRuntimeRunner:
        """Load the optimised graph; nothing is optimised again."""
        import onnxruntime

        options = _session_options(settings, threads)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = _open(canonical.label, folder / _MODEL, options)
        return OnnxRuntimeRunner(session, canonical.signature, shrink_arena=settings.arena_shrinkage)


class OnnxRuntimeRunner:
    """A session that answers requests."""

    def __init__(self, session: onnxruntime.InferenceSession, signature: Signature, shrink_arena: bool = False) -> None:
        import onnxruntime

        self.signature = signature
        self._session = session
        # The binding under InferenceSession.run, whose own check of the input names takes 2 us of a tiny model's 13.
        self._plain_run = session._sess.run
        self._exceptions = _exceptions()
        self._run_options = None
        if shrink_arena:
            self._run_options = onnxruntime.RunOptions()
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
            reason = _reason(error)
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


def open_reference(label: str, path: Path, settings: Settings) -> tuple[OnnxRuntimeRunner, list[str]]:
    """The model as it is, unoptimised, with the signature read from it: what engines are compared with.

    Returns:
        the runner, and a note for each output that Triton cannot serve and that was left out.

    Raises:
        SourceError: an operator, a type or a version that ONNX Runtime does not have.
    """
    import onnxruntime

    options = _session_options(settings, Threads(intra_op=hosts.cores()))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = _open(label, path, options)
    _refuse_strings_beside_bfloat16(label, session)
    rankless = _of_unknown_rank(path, [*session.get_inputs(), *session.get_outputs()])
    inputs = tuple(_spec(label, argument, rankless) for argument in session.get_inputs())
    served = [argument for argument in session.get_outputs() if data_type(argument.type)]
    notes = [
        f"output {argument.name} is left out: Triton has no type for {argument.type}"
        for argument in session.get_outputs()
        if not data_type(argument.type)
    ]
    if not served:
        raise SourceError(
            f"{label}: no output can be served",
            "; ".join(notes) or "the graph has none",
            "Export the model with tensor outputs (scikit-learn converters: zipmap=False)",
        )
    return OnnxRuntimeRunner(session, Signature(inputs, tuple(_spec(label, one, rankless) for one in served))), notes


def library_digests(settings: Settings) -> list[str]:
    """SHA-256 of each custom operator library.

    Raises:
        ConfigError: one of them cannot be read.
    """
    try:
        return [hashlib.sha256(Path(library).read_bytes()).hexdigest() for library in settings.custom_op_library]
    except OSError as error:
        raise ConfigError(
            f'parameter "custom_op_library" names {error.filename}',
            f"it cannot be read ({error.strerror})",
            "Give the full path of a shared library that the server can read",
        ) from None


def _session_options(settings: Settings, threads: Threads) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings on an optimised model are about its own passes
    options.intra_op_num_threads = threads.intra_op
    options.inter_op_num_threads = threads.inter_op
    if settings.execution_mode == "parallel":
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = settings.enable_mem_arena
    options.enable_mem_pattern = settings.enable_mem_pattern
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[settings.graph_optimization])
    for library in settings.custom_op_library:
        with _refused("custom_op_library", library):
            options.register_custom_ops_library(library)
    for name, value in settings.session_options:
        with _refused(name, value):
            options.add_session_config_entry(name, value)
    return options


@contextmanager
def _refused(parameter: str, value: str) -> Iterator[None]:
    """Turn what ONNX Runtime says to a parameter's value into an error that names both."""
    try:
        yield
    except _exceptions() as error:
        raise ConfigError(
            f'parameter "{parameter}" is "{value}"', _reason(error), "Correct it in config.pbtxt, or leave it out"
        ) from None


def _open(label: str, path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(_utf8(path), options, providers=_PROVIDERS)
    except _exceptions() as error:
        reason = _reason(error)
        raise SourceError(
            f"{label}: ONNX Runtime {onnxruntime.__version__} refuses the model", reason, _advice(reason)
        ) from None


def _utf8(path: Path) -> str:
    """The path as ONNX Runtime takes it, whatever the locale: in Triton's stub Python spells `ä` as two surrogates."""
    return os.fsencode(path).decode()


def _advice(reason: str) -> str:
    lowered = reason.lower()
    if (
        "not a registered function/op" in lowered
        or "no op registered" in lowered
        or "could not find an implementation" in lowered
    ):
        return 'Name the library that has the operator with the parameter "custom_op_library", or export without it'
    if "opset" in lowered or "unsupported model ir" in lowered:
        return "Export with an older opset, or install a newer onnxruntime"
    return "Check the file with onnx.checker.check_model, and export it again"


def _refuse_strings_beside_bfloat16(label: str, session: onnxruntime.InferenceSession) -> None:
    tensors = {argument.type for argument in (*session.get_inputs(), *session.get_outputs())}
    strings = [argument.name for argument in session.get_inputs() if argument.type == "tensor(string)"]
    if strings and "tensor(bfloat16)" in tensors:
        raise SourceError(
            f"{label}: input {strings[0]} cannot be served",
            "ONNX Runtime's Python interface does not take strings together with bfloat16 tensors",
            "Export the model with float32 or float16 inputs and outputs",
        )


def _of_unknown_rank(path: Path, arguments: Sequence[onnxruntime.NodeArg]) -> set[str]:
    """Names of those whose rank the model leaves open; ONNX Runtime shows them with the empty shape of a scalar."""
    shapeless = {argument.name for argument in arguments if not argument.shape}
    if not shapeless:
        return set()
    graph = read_model(path).graph
    declared = {value.name for value in (*graph.input, *graph.output) if value.type.tensor_type.HasField("shape")}
    return shapeless - declared


def _spec(label: str, argument: onnxruntime.NodeArg, rankless: set[str]) -> TensorSpec:
    row = data_type(argument.type)
    if row is None:
        raise SourceError(
            f"{label}: input {argument.name} cannot be served",
            f"Triton has no type for {argument.type}",
            "Export the model with tensor inputs of a type that Triton has",
        )
    return TensorSpec(argument.name, row.triton, None if argument.name in rankless else tuple(argument.shape))


def bfloat16_value(bits: Array) -> onnxruntime.OrtValue:
    """A bfloat16 tensor from uint16 of the same bits."""
    import onnxruntime

    row = data_type("BF16")
    assert row is not None
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(bits), row.onnx)


def bfloat16_bits(value: onnxruntime.OrtValue) -> Array:
    """A copy of a bfloat16 tensor's elements as uint16."""
    shape = tuple(value.shape())
    count = math.prod(shape)
    if count == 0:
        return np.empty(shape, np.uint16)
    return np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr())).reshape(shape).copy()


def _exceptions() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: unrelated classes, with no common base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NoSuchFile",
        "NotFound",
        "NotImplemented",
        "RuntimeException",
    )
    return (RuntimeError, ValueError, *(getattr(state, name) for name in names if hasattr(state, name)))


def _reason(error: Exception) -> str:
    """ONNX Runtime's message in one line, without its code, its C++ source position and signature."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Load model from .*? failed:\s*", "", text)
    node = re.match(r"Non-zero status code returned while running (\w+) node\. Name:'(.*?)' Status Message: ", text)
    if node:
        text = text[node.end() :]
    text = re.sub(r"^/\S+:\d+ .*?\) ", "", text)
    text = re.sub(r"^.* was false\. (?=\S)", "", text)
    return f'{node[1]} "{node[2]}": {text}' if node else text
