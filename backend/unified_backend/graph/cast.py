"""A graph in FP16 or BF16: every node that can, between inputs and outputs that keep their types."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unified_backend.graph.nodes import hoist_constants, matches, named

if TYPE_CHECKING:
    import onnx

__all__ = ["Cast", "Half", "Names", "cast", "float_values"]

Half = Literal["fp16", "bf16"]

# IEEE 754 half precision, and bfloat16: the largest finite value, and the smallest that is not rounded to zero.
LARGEST = {"fp16": 65504.0, "bf16": 3.3895e38}
_SMALLEST = {"fp16": 2.0**-25, "bf16": 2.0**-134}
_ROOM = 4.0  # how much larger values in service may be than those seen
# Sums over many values overflow or lose their small terms, and exponentials overflow from 11 on. Quantised values are a
# precision of their own.
_KEPT = frozenset(
    (
        *("CumSum", "Exp", "Pow", "Range", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
    )
)
_FIRST_ONLY = frozenset(("Resize", "Upsample"))  # their other inputs are sizes, which engines read as FP32


@dataclasses.dataclass(frozen=True)
class Cast:
    """What was made of a graph.

    Attributes:
        lowered: nodes that compute in the half type.
        kept: name of a node -> why it stays in FP32, of those that compute with floating point.
    """

    model: onnx.ModelProto
    lowered: int
    kept: Mapping[str, str]


def cast(
    model: onnx.ModelProto,
    to: Half,
    exclude: Sequence[str] = (),
    ranges: Mapping[str, float] | None = None,
    emulated: bool = False,
) -> Cast:
    """The model with its floating-point nodes in a half type.

    Inputs and outputs keep their types. A node stays in FP32 if ONNX's schema has its operator in no such type, or it
    holds graphs of its own, sums or exponentiates, has a weight or gave values that the type cannot hold.

    Args:
        model: with its external data loaded; it is changed.
        exclude: patterns (`fnmatch`) of names of nodes, outputs of nodes or operators that stay in FP32.
        ranges: value -> its largest absolute value as seen in FP32.
        emulated: give the graph in FP32 instead, each value rounded to the half type where it would be one: what a
            runtime without such kernels can be asked.
    """
    from onnx import TensorProto, helper

    target = TensorProto.FLOAT16 if to == "fp16" else TensorProto.BFLOAT16
    graph = model.graph
    named(model)
    hoist_constants(graph)
    kinds = _kinds(model)
    floats = frozenset(name for name, kind in kinds.items() if kind == TensorProto.FLOAT)
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    rule = _Rule(
        to,
        {entry.domain: entry.version for entry in model.opset_import},
        floats,
        kinds.keys(),
        weights,
        exclude,
        ranges or {},
    )
    kept: dict[str, str] = {}
    half: list[tuple[onnx.NodeProto, set[int], set[int]] | None] = []
    for node in graph.node:
        reason, inputs, outputs = rule(node)
        half.append((node, inputs, outputs) if reason is None else None)
        if reason:
            kept[node.name] = reason
    names = Names(graph)
    needed = _read_in_full(graph, half)
    wanted = {node.input[at] for one in half if one for node, inputs, _ in [one] for at in inputs}
    halves = {name: names.new(f"{name}_{to}") for name in sorted(wanted)}
    made: list[onnx.NodeProto] = []

    def convert(source: str, result: str, kind: int) -> list[onnx.NodeProto]:
        if not emulated:
            return [helper.make_node("Cast", [source], [result], name=names.new(f"{result}_cast"), to=kind)]
        if kind == TensorProto.FLOAT:
            return [helper.make_node("Identity", [source], [result], name=names.new(f"{result}_same"))]
        rounded = names.new(f"{result}_rounded")
        steps = ((source, rounded, target), (rounded, result, TensorProto.FLOAT))
        return [helper.make_node("Cast", [a], [b], name=names.new(f"{b}_cast"), to=to_) for a, b, to_ in steps]

    for name in sorted(wanted & weights.keys()):
        graph.initializer.append(_converted(weights[name], halves[name], to, emulated))
    inputs_of_graph = [value.name for value in graph.input if value.name in wanted and value.name not in weights]
    for name in inputs_of_graph:
        made += convert(name, halves[name], target)
    for node, one in zip(list(graph.node), half, strict=True):
        copy = type(node).FromString(node.SerializeToString())
        made.append(copy)
        lowered_outputs = set[int]()
        if one:
            _, inputs, lowered_outputs = one
            for at in inputs:
                copy.input[at] = halves[node.input[at]]
        for at, name in enumerate(node.output):
            if at in lowered_outputs:
                result = halves.setdefault(name, names.new(f"{name}_{to}"))
                copy.output[at] = names.new(f"{name}_exact") if emulated else result
                if emulated:
                    made += convert(copy.output[at], result, target)
                if name in needed:
                    made += convert(result, name, TensorProto.FLOAT)
            elif name in wanted:
                made += convert(name, halves[name], target)
    del graph.node[:]
    graph.node.extend(made)
    unread = weights.keys() - needed
    rest = [tensor for tensor in graph.initializer if tensor.name not in unread]
    del graph.initializer[:]
    graph.initializer.extend(rest)
    del graph.value_info[:]  # of types that are no longer so
    return Cast(model, sum(one is not None for one in half), kept)


def float_values(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the FP32 values of the graph, as far as ONNX's inference knows them."""
    from onnx import TensorProto

    return frozenset(name for name, kind in _kinds(model).items() if kind == TensorProto.FLOAT)


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Value -> its element type, of those that ONNX's inference knows: none behind operators that it does not."""
    import onnx
    from onnx import shape_inference

    lean = onnx.ModelProto()
    lean.CopyFrom(model)
    for tensor in lean.graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) > _SHAPE_VALUES:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    del lean.graph.value_info[:]
    graph = shape_inference.infer_shapes(lean, strict_mode=False).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    found = {value.name: value.type.tensor_type.elem_type for value in values if value.type.tensor_type.elem_type}
    return found | {one.name: one.data_type for one in graph.initializer}


_SHAPE_VALUES = 1024  # larger initializers are no shapes, and inference does without their values


@dataclasses.dataclass(frozen=True)
class _Rule:
    """Which nodes can be lowered."""

    to: Half
    opsets: Mapping[str, int]
    floats: Collection[str]
    known: Collection[str]
    weights: Mapping[str, onnx.TensorProto]
    exclude: Sequence[str]
    ranges: Mapping[str, float]

    def __call__(self, node: onnx.NodeProto) -> tuple[str | None, set[int], set[int]]:
        """Why a node stays as it is ("" where it has no floating point), and its FP32 inputs and outputs else."""
        inputs = {at for at, name in enumerate(node.input) if name in self.floats}
        outputs = {at for at, name in enumerate(node.output) if name in self.floats}
        if node.op_type in _FIRST_ONLY:
            inputs &= {0}
        if _holds_graphs(node):
            return f"{node.op_type} holds a graph of its own", inputs, outputs
        unknown = [name for name in node.input if name and name not in self.known]
        if unknown and node.op_type != "Cast":
            return f"the type of {unknown[0]} is not known: its operator is none of ONNX's own", inputs, outputs
        if not inputs and not outputs:
            return "", set(), set()
        return self._reason(node, inputs, outputs), inputs, outputs

    def _reason(self, node: onnx.NodeProto, inputs: set[int], outputs: set[int]) -> str | None:
        if pattern := matches(node, self.exclude):
            return f"excluded by {pattern}"
        if node.op_type == "Cast" or not inputs:
            return ""  # it makes FP32 of something else, and a cast of its result follows where one is needed
        if node.op_type in _KEPT:
            return f"{node.op_type} stays in FP32"
        if not self._allowed(node, inputs, outputs):
            return f"{node.op_type} has no {self.to.upper()} in ONNX's schema"
        for at in sorted(inputs):
            if (tensor := self.weights.get(node.input[at])) is not None and (why := self._lost(tensor)):
                return why
        for name in (*(node.input[at] for at in sorted(inputs)), *(node.output[at] for at in sorted(outputs))):
            if self.ranges.get(name, 0.0) > LARGEST[self.to] / _ROOM:
                return f"{name} reached {self.ranges[name]:.3g}, and {self.to.upper()} ends at {LARGEST[self.to]:.6g}"
        return None

    def _allowed(self, node: onnx.NodeProto, inputs: set[int], outputs: set[int]) -> bool:
        from onnx import defs

        domain = "" if node.domain == "ai.onnx" else node.domain
        if not defs.has(node.op_type, self.opsets.get(domain, 0), domain):
            return False
        schema = defs.get_schema(node.op_type, self.opsets[domain], domain)
        kinds = {one.type_param_str: set(one.allowed_type_strs) for one in schema.type_constraints}
        wanted = "tensor(float16)" if self.to == "fp16" else "tensor(bfloat16)"
        ports = [_port(schema.inputs, at) for at in inputs] + [_port(schema.outputs, at) for at in outputs]
        return all(port is not None and wanted in kinds.get(port.type_str, {port.type_str}) for port in ports)

    def _lost(self, tensor: onnx.TensorProto) -> str:
        """What the type would lose of a weight; empty if only digits."""
        values = np.abs(_array(tensor))
        if values.size and (largest := float(values.max())) > LARGEST[self.to]:
            return f"{tensor.name} holds {largest:.3g}, beyond {self.to.upper()}'s {LARGEST[self.to]:.6g}"
        # A lone constant is an epsilon; of many weights the smallest may go.
        if values.size == 1 and 0 < float(values.reshape(-1)[0]) <= _SMALLEST[self.to]:
            return f"{tensor.name} is {float(values.reshape(-1)[0]):.3g}, which would be zero"
        return ""


def _holds_graphs(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _port(ports: Sequence[Any], at: int) -> Any:
    """The formal parameter of an input or output; the last may stand for many."""
    if at < len(ports):
        return ports[at]
    return ports[-1] if ports and ports[-1].option.name == "Variadic" else None


class Names:
    """Names that the graph does not have yet."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
        self._taken |= {value.name for value in (*graph.input, *graph.output, *graph.initializer)}

    def new(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        return name


def _read_in_full(graph: onnx.GraphProto, half: Sequence[tuple[onnx.NodeProto, set[int], set[int]] | None]) -> set[str]:
    """Values that something reads as they are: outputs of the graph, nodes that stay, graphs inside nodes."""
    needed = {value.name for value in graph.output}
    for node, one in zip(graph.node, half, strict=True):
        lowered = one[1] if one else set()
        needed |= {name for at, name in enumerate(node.input) if at not in lowered}
        needed |= set(_captured(node))
    return needed


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Every name that graphs inside a node read; some of them are their own."""
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from _captured(inner)
            yield from (value.name for value in graph.output)


def _converted(tensor: onnx.TensorProto, name: str, to: Half, emulated: bool) -> onnx.TensorProto:
    import ml_dtypes
    from onnx import numpy_helper

    values = _array(tensor).astype(np.float16 if to == "fp16" else ml_dtypes.bfloat16)
    return numpy_helper.from_array(values.astype(np.float32) if emulated else values, name)


def _array(tensor: onnx.TensorProto) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)
