"""OpenVINO on the CPU: takes ONNX, and TensorFlow's files as they are; its IR is the built engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_backend.engines import Built, Canonical, Threads
from unified_backend.errors import EngineError, RequestError
from unified_backend.settings import Settings
from unified_backend.tensors import Array, Signature, TensorSpec

if TYPE_CHECKING:
    import openvino

__all__ = ["OpenVino", "OpenVinoRunner"]

_RECIPE = 1  # raised when the same key fields would give other files
_MODEL = "model.xml"
# A checkpoint's files are found by the name of its graph, which stays.
_FILE_NAMES = {"onnx": "model.onnx", "savedmodel": "saved_model.pb", "graphdef": "model.pb", "tflite": "model.tflite"}
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
    accepts = frozenset({"onnx", "savedmodel", "graphdef", "checkpoint", "tflite"})

    def unusable(self) -> str | None:
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

        openvino.save_model(_read(canonical, settings), folder / _MODEL, compress_to_fp16=False)
        return {}

    def load(self, canonical: Canonical, built: Built | None, settings: Settings, threads: Threads) -> OpenVinoRunner:
        """Compile what was built, else the source itself.

        Raises:
            EngineError: an operator, a type or a name that OpenVINO does not have.
        """
        model = _core().read_model(built.folder / _MODEL) if built else _read(canonical, settings)
        try:
            compiled = _core().compile_model(model, "CPU", _options(threads))
        except RuntimeError as error:
            raise _refused(canonical, error) from None
        return OpenVinoRunner(canonical, compiled)


class OpenVinoRunner:
    """A compiled model that answers requests."""

    def __init__(self, canonical: Canonical, compiled: openvino.CompiledModel) -> None:
        given = canonical.signature
        self._inputs = [(name, _port(compiled.inputs, name)) for name in (spec.name for spec in given.inputs)]
        outputs = [spec.name for spec in given.outputs] or [_any_name(port) for port in compiled.outputs]
        self._outputs = {name: _port(compiled.outputs, name) for name in outputs}
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
            reason = _reason(error)
            if "alloc" in reason:
                raise EngineError("out of memory", reason, "Lower max_batch_size or give the server more") from None
            raise RequestError(
                "the model does not take this request", reason, "Check its shapes and values against the model"
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


def _options(threads: Threads) -> dict[str, Any]:
    """f32 as the model has it, where a CPU with bfloat16 would be used by default; several instances on one host."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads.intra_op),
        "ENABLE_CPU_PINNING": "NO",
    }


@cache
def _core() -> openvino.Core:
    import openvino

    return openvino.Core()


def _read(canonical: Canonical, settings: Settings) -> openvino.Model:
    """The source as an OpenVINO model with the names, inputs, outputs and shapes of the canonical model's signature.

    Raises:
        EngineError: OpenVINO does not take the file, or it has no tensor of such a name.
    """
    try:
        with _named(canonical) as path:
            model = _core().read_model(path)
        _feed(model, canonical)
        return _with_signature(model, canonical, {new: old for old, new in settings.names})
    except RuntimeError as error:
        raise _refused(canonical, error) from None


@contextmanager
def _named(canonical: Canonical) -> Iterator[Path]:
    """The source under a name that OpenVINO, which goes by names, takes for what it is."""
    wanted = _FILE_NAMES.get(canonical.format, canonical.path.name)
    if canonical.path.name == wanted:
        yield canonical.path.parent if canonical.format == "savedmodel" else canonical.path
        return
    with tempfile.TemporaryDirectory() as folder:
        for beside in canonical.path.parent.iterdir():
            if beside.name != wanted:
                (Path(folder) / beside.name).symlink_to(beside.absolute())
        (Path(folder) / wanted).symlink_to(canonical.path.absolute())
        yield Path(folder) if canonical.format == "savedmodel" else Path(folder) / wanted


def _feed(model: openvino.Model, canonical: Canonical) -> None:
    """Replace the inputs that nobody feeds (`is_training`) by their constants."""
    from openvino import opset13

    for name, value in canonical.feeds.items():
        port = _found(model.inputs, name)
        if port is None:
            continue
        parameter = port.get_node()
        constant = opset13.constant(np.array(value, port.element_type.to_dtype()))
        parameter.output(0).replace(constant.output(0))
        model.remove_parameter(parameter)


def _with_signature(model: openvino.Model, canonical: Canonical, old: Mapping[str, str]) -> openvino.Model:
    """The model with just these inputs and outputs; `old` has the names of those that are served under another."""
    import openvino

    signature, inner = canonical.signature, canonical.inner
    inputs, outputs = {}, {}
    for spec in signature.inputs:
        port = _found(model.inputs, inner.get(spec.name), old.get(spec.name), spec.name)
        if port is None:
            raise _lacks(canonical, "input", spec.name, [_any_name(each) for each in model.inputs])
        inputs[spec.name] = port
    for spec in signature.outputs:
        port = _found(model.outputs, inner.get(spec.name), old.get(spec.name), spec.name) or _inside(
            model, inner.get(spec.name, spec.name)
        )
        if port is None:
            raise _lacks(canonical, "output", spec.name, [_any_name(each) for each in model.outputs])
        outputs[spec.name] = port
    if not signature.outputs:
        outputs = {_any_name(port): port for port in model.outputs}
    results = [
        openvino.op.Result(port.get_node().input_value(0) if port.get_node().get_type_name() == "Result" else port)
        for port in outputs.values()
    ]
    parameters = [port.get_node() for port in inputs.values()]
    made = openvino.Model(results, parameters, canonical.label.replace("/", "-"))
    shapes = {
        port: _shape(spec)
        for spec, port in zip(signature.inputs, made.inputs, strict=True)
        if spec.shape is not None and _shape(spec) != port.partial_shape
    }
    if shapes:
        made.reshape(shapes)
    _name(made.inputs, list(inputs))
    _name(made.outputs, list(outputs))
    return made


def _name(ports: Sequence[Any], names: Sequence[str]) -> None:
    """Give each tensor the names it is served under; one that is served twice has both."""
    shared: dict[Any, tuple[Any, set[str]]] = {}
    for port, name in zip(ports, names, strict=True):
        source = port.get_node().input_value(0) if port.get_node().get_type_name() == "Result" else port
        key = (source.get_node().get_name(), source.get_index())
        shared.setdefault(key, (port.get_tensor(), set()))[1].add(name)
    for tensor, served in shared.values():
        tensor.set_names(served)


def _shape(spec: TensorSpec) -> openvino.PartialShape:
    import openvino

    return openvino.PartialShape([size if isinstance(size, int) else -1 for size in spec.shape or ()])


def _found(ports: Sequence[Any], *names: str | None) -> Any:
    """The port that has one of these names, with or without TensorFlow's `:0`."""
    for name in names:
        if name is None:
            continue
        alike = {name, name.removesuffix(":0"), f"{name}:0"}
        for port in ports:
            if alike & port.get_names() or port.get_node().get_friendly_name() in alike:
                return port
    return None


def _inside(model: openvino.Model, name: str) -> Any:
    """An output of a node inside the graph, by its tensor's name."""
    alike = {name, name.removesuffix(":0"), f"{name}:0"}
    for node in model.get_ops():
        for port in node.outputs():
            if alike & port.get_names():
                return port
    return None


def _port(ports: Sequence[Any], name: str) -> Any:
    return next(port for port in ports if name in port.get_names())


def _any_name(port: Any) -> str:
    return str(min(port.get_names(), default=port.get_node().get_friendly_name()))


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


def _lacks(canonical: Canonical, side: str, name: str, there: Sequence[str]) -> EngineError:
    return EngineError(
        f"{canonical.label}: OpenVINO cannot serve the model",
        f'what it reads of the {canonical.format} has no {side} "{name}", only {", ".join(there) or "none"}',
        "Serve it by another engine, or choose other inputs, outputs or another signature",
    )


def _refused(canonical: Canonical, error: RuntimeError) -> EngineError:
    return EngineError(
        f"{canonical.label}: OpenVINO {importlib.metadata.version('openvino')} refuses the model",
        _reason(error),
        "Serve it by another engine, or export it as ONNX",
    )


def _reason(error: RuntimeError) -> str:
    """OpenVINO's message in one line, without its C++ source positions."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Exception from ", "Check '", "----"))]
    return " ".join(kept or lines)[:600]
