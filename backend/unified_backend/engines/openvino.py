"""OpenVINO on the CPU: takes ONNX, its own IR, and TensorFlow's files as they are; IR is the built engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_backend.engines import Built, Canonical, Threads
from unified_backend.engines.openvino_reading import any_name, core, port_of, read, reason, refused
from unified_backend.errors import EngineError, RequestError
from unified_backend.gpus import Gpu
from unified_backend.settings import Settings
from unified_backend.tensors import Array, Signature, TensorSpec

if TYPE_CHECKING:
    import openvino

__all__ = ["OpenVino", "OpenVinoRunner"]

_RECIPE = 2  # raised when the same key fields would give other files
_MODEL = "model.xml"
# openvino.Type.to_string() -> Triton's name. bfloat16 and strings are left out: its Python interface has no arrays of
# the first, and needs an extension for most operators on the second.
_TYPES = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
}


class OpenVino:
    """The OpenVINO CPU rung."""

    name = "openvino"
    accepts = frozenset({"onnx", "savedmodel", "graphdef", "checkpoint", "tflite", "openvino"})

    def unusable(self, gpu: Gpu | None) -> str | None:
        """Why OpenVINO cannot be used here, or None."""
        if importlib.util.find_spec("openvino") is None:
            return "the package openvino is not installed"
        return None

    def key_fields(self, settings: Settings) -> dict[str, Any]:
        """OpenVINO's version; its IR is the same for every CPU."""
        return {"openvino": importlib.metadata.version("openvino"), "recipe": _RECIPE}

    def build(self, canonical: Canonical, settings: Settings, folder: Path) -> dict[str, Any]:
        """Read the model once and save it as IR, with nothing rounded to half precision."""
        import openvino

        openvino.save_model(read(canonical, settings), folder / _MODEL, compress_to_fp16=False)
        return {}

    def load(self, canonical: Canonical, built: Built | None, settings: Settings, threads: Threads) -> OpenVinoRunner:
        """Compile what was built, else the source itself.

        Raises:
            EngineError: an operator, a type or a name that OpenVINO does not have.
        """
        model = core().read_model(built.folder / _MODEL) if built else read(canonical, settings)
        try:
            compiled = core().compile_model(model, "CPU", _options(threads, settings.openvino_hint))
        except RuntimeError as error:
            raise refused(canonical, error) from None
        return OpenVinoRunner(canonical, compiled)


class OpenVinoRunner:
    """A compiled model that answers requests."""

    def __init__(self, canonical: Canonical, compiled: openvino.CompiledModel) -> None:
        given = canonical.signature
        self._inputs = [(spec.name, port_of(canonical, "input", compiled.inputs, spec.name)) for spec in given.inputs]
        outputs = [spec.name for spec in given.outputs] or [any_name(port) for port in compiled.outputs]
        self._outputs = {name: port_of(canonical, "output", compiled.outputs, name) for name in outputs}
        self.signature = Signature(
            tuple(_spec(canonical, name, port) for name, port in self._inputs),
            tuple(_spec(canonical, name, port) for name, port in self._outputs.items()),
        )
        self._request = compiled.create_infer_request()

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The outputs asked for, in that order; see `Runner.run`."""
        import openvino

        for name, port in self._inputs:
            if not port.partial_shape.compatible(openvino.PartialShape(list(feeds[name].shape))):
                raise RequestError(
                    "the model does not take this request",
                    f'input "{name}" has shape {list(feeds[name].shape)} and the model takes {port.partial_shape}',
                    "Check its shapes against the model",
                )
        try:
            results = self._request.infer({port: feeds[name] for name, port in self._inputs}, share_inputs=True)
        except RuntimeError as error:
            why = reason(error)
            if "alloc" in why:
                raise EngineError("out of memory", why, "Lower max_batch_size or give the server more") from None
            raise RequestError(
                "the model does not take this request", why, "Check its shapes and values against the model"
            ) from None
        arrays = []
        for name in outputs:
            array = results[self._outputs[name]]
            if into and name in into:
                np.copyto(into[name], array)
                array = into[name]
            arrays.append(array)
        return arrays

    def close(self) -> None:
        """Free the compiled model."""
        del self._request, self._inputs, self._outputs


def _options(threads: Threads, hint: str) -> dict[str, Any]:
    """f32 as the model has it, where a CPU with bfloat16 would be used by default; several instances on one host.

    Args:
        hint: `latency` gives all threads to one request; with `throughput` OpenVINO chooses.
    """
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": hint.upper(),
        **({"NUM_STREAMS": "1"} if hint == "latency" else {}),
        "INFERENCE_NUM_THREADS": str(threads.intra_op),
        "ENABLE_CPU_PINNING": "NO",
    }


def _spec(canonical: Canonical, name: str, port: Any) -> TensorSpec:
    dtype = _TYPES.get(port.element_type.to_string())
    if dtype is None:
        raise EngineError(
            f"{canonical.label}: OpenVINO cannot serve the model",
            f'tensor "{name}" is of type {port.element_type.to_string()}',
            "Serve it by another engine",
        )
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return TensorSpec(name, dtype, None)
    return TensorSpec(name, dtype, tuple(size.get_length() if size.is_static else None for size in shape))
