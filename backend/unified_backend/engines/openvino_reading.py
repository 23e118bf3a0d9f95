"""Reads a source into OpenVINO: just the part that is served, under the names that it is served by."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_backend.conversion.tflite_file import prepared
from unified_backend.engines import Canonical
from unified_backend.errors import EngineError
from unified_backend.formats.checkpoint import META
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

if TYPE_CHECKING:
    import openvino

__all__ = ["any_name", "core", "port_of", "read", "reason", "refused"]

# A checkpoint's files are found by the name of its graph, which stays, unless it has none before `.meta`.
_FILE_NAMES = {"onnx": "model.onnx", "savedmodel": "saved_model.pb", "graphdef": "model.pb", "tflite": "model.tflite"}
_GRAPHS = ("graphdef", "checkpoint")  # formats that hold more than what is served, and no signature


@cache
def core() -> openvino.Core:
    """OpenVINO's entry point, one a process."""
    import openvino

    return openvino.Core()


def read(canonical: Canonical, settings: Settings) -> openvino.Model:
    """The source as an OpenVINO model with the names, inputs, outputs and shapes of the canonical model's signature.

    Raises:
        EngineError: OpenVINO does not take the file, or it has no tensor of such a name.
    """
    from openvino import frontend

    failures = (  # none of these is a kind of another
        *(RuntimeError, frontend.GeneralFailure, frontend.InitializationFailure),
        *(frontend.NotImplementedFailure, frontend.OpConversionFailure, frontend.OpValidationFailure),
    )
    try:
        with _named(canonical) as path:
            cut = canonical.format in _GRAPHS or (canonical.part is not None and canonical.format == "savedmodel")
            model = _served_part(path, canonical) if cut else core().read_model(path)
        return _with_signature(model, canonical, {new: old for old, new in settings.names})
    except failures as error:
        raise refused(canonical, error) from None


@contextmanager
def _named(canonical: Canonical) -> Iterator[Path]:
    """The source under a name that OpenVINO, which goes by names, takes for what it is."""
    if canonical.part is not None and canonical.format == "tflite":
        with tempfile.TemporaryDirectory() as folder:
            yield prepared(canonical.path, canonical.part, Path(folder)).path
        return
    if canonical.format == "openvino":
        with _as_ir(canonical.path) as path:
            yield path
        return
    own = canonical.path.name
    wanted = _FILE_NAMES.get(canonical.format, f"model{own}" if own == META else own)
    if own == wanted:
        yield canonical.path.parent if canonical.format == "savedmodel" else canonical.path
        return
    with tempfile.TemporaryDirectory() as folder:
        for beside in canonical.path.parent.iterdir():
            name = f"model{beside.name}" if own == META else beside.name
            if name != wanted:
                (Path(folder) / name).symlink_to(beside.absolute())
        (Path(folder) / wanted).symlink_to(canonical.path.absolute())
        yield Path(folder) if canonical.format == "savedmodel" else Path(folder) / wanted


@contextmanager
def _as_ir(path: Path) -> Iterator[Path]:
    """Both files of an IR under names by which OpenVINO knows them."""
    if path.suffix == ".xml":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.xml"
        made.symlink_to(path.absolute())
        made.with_suffix(".bin").symlink_to(path.with_suffix(".bin").absolute())
        yield made


def _served_part(path: Path, canonical: Canonical) -> openvino.Model:
    """Of a graph what lies between the inputs and outputs that are served, read and nothing else.

    A training graph has parts that OpenVINO does not read (gradients, and conditionals of `is_training`). Inputs that
    nobody feeds become constants before it looks at the operators.
    """
    from openvino import PartialShape
    from openvino.frontend import FrontEndManager

    frontend = FrontEndManager().load_by_framework("tf")
    graph = frontend.load(str(path))

    def place(side: str, name: str) -> Any:
        for each in (name, f"{name.removesuffix(':0')}:0"):
            if found := graph.get_place_by_tensor_name(each):
                return found
        raise _lacks(canonical, side, name, ())

    signature, inner = canonical.signature, canonical.inner
    inputs = [place("input", inner.get(spec.name, spec.name)) for spec in signature.inputs]
    fed = [(place("input", name), np.array(value)) for name, value in canonical.feeds.items()]
    outputs = [place("output", inner.get(spec.name, spec.name)) for spec in signature.outputs]
    graph.extract_subgraph([*inputs, *(found for found, _ in fed)], outputs)
    for found, value in fed:
        graph.set_partial_shape(found, PartialShape(list(value.shape)))
        graph.set_tensor_value(found, value)
    return frontend.convert(graph)


def _with_signature(model: openvino.Model, canonical: Canonical, old: Mapping[str, str]) -> openvino.Model:
    """The model with just these inputs and outputs; `old` has the names of those that are served under another."""
    import openvino

    signature, inner = canonical.signature, canonical.inner
    inputs, outputs = {}, {}
    for spec in signature.inputs:
        port = _found(model.inputs, inner.get(spec.name), old.get(spec.name), spec.name)
        if port is None:
            raise _lacks(canonical, "input", spec.name, [any_name(each) for each in model.inputs])
        inputs[spec.name] = port
    for spec in signature.outputs:
        port = _found(model.outputs, inner.get(spec.name), old.get(spec.name), spec.name) or _inside(
            model, inner.get(spec.name, spec.name)
        )
        if port is None:
            raise _lacks(canonical, "output", spec.name, [any_name(each) for each in model.outputs])
        outputs[spec.name] = port
    if not signature.outputs:
        outputs = {any_name(port): port for port in model.outputs}
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
    _name([*made.inputs, *made.outputs], [*inputs, *outputs])
    return made


def _name(ports: Sequence[Any], names: Sequence[str]) -> None:
    """Give each tensor the names it is served under; one that is served twice, as an input too, has both."""
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


def port_of(canonical: Canonical, side: str, ports: Sequence[Any], name: str) -> Any:
    """The port that has this name.

    Raises:
        EngineError: none has it.
    """
    for port in ports:
        if name in port.get_names():
            return port
    raise _lacks(canonical, side, name, [any_name(port) for port in ports])


def any_name(port: Any) -> str:
    """A name of a port: the first of several, the node's where it has none."""
    return str(min(port.get_names(), default=port.get_node().get_friendly_name()))


def _lacks(canonical: Canonical, side: str, name: str, there: Sequence[str]) -> EngineError:
    only = f", only {', '.join(there)}" if there else ""
    return EngineError(
        f"{canonical.label}: OpenVINO cannot serve the model",
        f'what it reads of the {canonical.format} has no {side} "{name}"{only}',
        "Serve it by another engine, or choose other inputs, outputs or another signature",
    )


def refused(canonical: Canonical, error: Exception) -> EngineError:
    """What OpenVINO says of a model that it does not take, as an error of ours."""
    return EngineError(
        f"{canonical.label}: OpenVINO {importlib.metadata.version('openvino')} refuses the model",
        reason(error),
        "Serve it by another engine, or export it as ONNX",
    )


def reason(error: Exception) -> str:
    """OpenVINO's message in one line, without its C++ source positions."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Exception from ", "Check '", "----"))]
    return " ".join(kept or lines)[:600]
