"""An MXNet graph opened in MXNet: how it is run, and how it is exported."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_backend.errors import ConversionError
from unified_backend.tensors import Array, TensorSpec, data_type
from unified_backend.toolchains.workers.messages import first_line
from unified_backend.toolchains.workers.mxnet_mappings import register

if TYPE_CHECKING:
    import onnx

__all__ = ["Opened", "framework", "open_graph"]

# `NAME_output` is NAME in the exporter's graph, `NAME_output1` NAME1; states of recurrent layers are numbered.
_OUTPUT = re.compile(r"(.+)_(output|state_output|statecell_output)(\d*)")
_NUMBER = {"output": "", "state_output": "1", "statecell_output": "2"}


def framework() -> Any:
    """MXNet, imported as it needs it: for a NumPy before 1.24 and an onnx before 1.19.

    Returns:
        the module.
    """
    from onnx import TensorProto, helper

    for kind in (bool, object, int, float):
        setattr(np, kind.__name__, kind)
    mapping = types.ModuleType("onnx.mapping")
    known = [n for n in TensorProto.DataType.values() if n not in (0, 8) and n <= TensorProto.COMPLEX128]
    forth = {number: np.dtype(helper.tensor_dtype_to_np_dtype(number)) for number in known}
    mapping.TENSOR_TYPE_TO_NP_TYPE = forth  # type: ignore[attr-defined]
    mapping.NP_TYPE_TO_TENSOR_TYPE = {dtype: number for number, dtype in forth.items()}  # type: ignore[attr-defined]
    sys.modules["onnx.mapping"] = sys.modules["onnx"].mapping = mapping  # type: ignore[attr-defined]
    import mxnet

    return mxnet


class Opened:
    """A graph in MXNet.

    Attributes:
        inputs: public names, types and shapes.
        outputs: (); known after a run.
        words: ().
        inner: public name of an input -> its name in the graph.
        names: name of an output in the exporter's graph -> its public name.
    """

    outputs: tuple[TensorSpec, ...] = ()
    words: tuple[str, ...] = ()

    def __init__(self, job: Mapping[str, Any], specs: tuple[TensorSpec, ...], symbol: Any, weights: Any) -> None:
        self.inputs = specs
        self.inner = {spec.name: job["inner"].get(spec.name, spec.name) for spec in specs}
        renamed = job.get("names") or {}
        self.names = {_exported_name(name): renamed.get(name, name) for name in symbol.list_outputs()}
        self._labels = job["labels"]
        self._symbol, self._weights = symbol, weights
        self._executors: dict[tuple[tuple[int, ...], ...], Any] = {}
        self._seen: dict[str, tuple[int, ...]] = {}

    @property
    def run(self) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        """MXNet's answers to feeds under public names."""
        return self._run

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        import mxnet

        given = {self.inner[name]: array for name, array in feeds.items()}
        shapes = {name: array.shape for name, array in given.items()}
        executor = self._executor(shapes)
        self._seen = shapes
        for name, array in given.items():
            executor.arg_dict[name][:] = mxnet.nd.array(array, dtype=executor.arg_dict[name].dtype)
        answers = executor.forward(is_train=False)
        return {name: answer.asnumpy() for name, answer in zip(self.names.values(), answers, strict=True)}

    def _executor(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """The graph bound to shapes, with its weights."""
        import mxnet

        key = tuple(shapes.values())
        if key not in self._executors:
            types = {self.inner[spec.name]: _numpy(spec) for spec in self.inputs}
            arguments, states = self._weights
            known = {name: array.shape for name, array in (*arguments.items(), *states.items())}
            try:
                self._symbol.infer_shape(**known, **shapes)  # names the operator that the inputs do not fit
                executor = self._symbol.simple_bind(mxnet.cpu(), grad_req="null", type_dict=types, **shapes)
            except mxnet.base.MXNetError as error:
                raise ValueError(_reason(str(error))) from error
            executor.copy_params_from(arguments, states, allow_extra_params=True)
            self._executors[key] = executor
        return self._executors[key]

    def exported(self, opset: int, dynamic: bool) -> onnx.ModelProto:
        """The graph as the exporter writes it, with open dimensions where the inputs have them."""
        import mxnet
        from mxnet.onnx.mx2onnx._export_onnx import MXNetGraph
        from onnx import checker, helper

        inside = self._symbol.get_internals()
        _, shapes, _ = inside.infer_shape(**self._seen)
        register({name: len(shape) for name, shape in zip(map(_node_of, inside.list_outputs()), shapes, strict=True)})
        arguments, states = self._weights
        labels = {name: mxnet.nd.zeros((1,)) for name in self._labels}  # variables that no answer depends on
        order = [name for name in self._symbol.list_inputs() if name in self._seen]
        public = {inner: spec for spec in self.inputs for inner in (self.inner[spec.name],)}
        checker.DEFAULT_CONTEXT.opset_imports = {"": opset}  # else the exporter checks for onnx's newest
        graph = MXNetGraph().create_onnx_graph_proto(
            self._symbol,
            {**arguments, **states, **labels},
            [self._seen[name] for name in order],
            [helper.np_dtype_to_tensor_dtype(np.dtype(_numpy(public[name]))) for name in order],
            opset_version=opset,
            dynamic=dynamic,
            dynamic_input_shapes=[public[name].shape for name in order] if dynamic else None,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def open_graph(job: Mapping[str, Any]) -> Opened:
    """The graph and its parameters.

    Raises:
        ConversionError: MXNet does not load them.
    """
    import mxnet

    path = Path(job["path"])
    try:
        symbol = mxnet.sym.load(str(path))
        arrays = mxnet.nd.load(str(path.with_name(job["weights"])))
    except Exception as error:
        raise ConversionError(
            "MXNet cannot load the model", first_line(error), "Copy it again, or save it again"
        ) from error
    plain = {name.partition(":")[2] or name: array for name, array in arrays.items()}
    arguments = {name: plain[name] for name in symbol.list_arguments() if name in plain}
    states = {name: plain[name] for name in symbol.list_auxiliary_states() if name in plain}
    specs = tuple(
        TensorSpec(row["name"], row["dtype"], None if row["shape"] is None else tuple(row["shape"]))
        for row in job["inputs"]
    )
    return Opened(job, specs, symbol, (arguments, states))


def _numpy(spec: TensorSpec) -> Any:
    row = data_type(spec.dtype)
    if row is None or spec.dtype in ("BF16", "STRING", "UINT16", "UINT32", "UINT64", "INT16"):
        raise ConversionError(
            f"the input {spec.name} is to be {spec.dtype}", "MXNet has no such arrays", "State FP32, or an integer type"
        )
    return row.numpy


def _reason(text: str) -> str:
    """What MXNet says of an operator whose shapes do not fit, out of what it says of its own stack."""
    found = re.search(r"(Error in operator|Check failed:) [^\n]*", text)
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+: ", "", found[0]) if found else text


def _node_of(output: str) -> str:
    return re.sub(r"_output0?$", "", output)


def _exported_name(name: str) -> str:
    """What the exporter calls an output that MXNet calls `NAME_output`."""
    match = _OUTPUT.fullmatch(name)
    return f"{match[1]}{_NUMBER[match[2]]}{match[3]}" if match else name
