"""The graph of an ONNX file as a picture needs it: nodes, what each takes, where it belongs, types of tensors."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unified_backend.conversion.interface import graphs_of
from unified_backend.drawing.folding import Scope
from unified_backend.formats.onnx import read_model
from unified_backend.tensors import data_type

if TYPE_CHECKING:
    import onnx

__all__ = ["Graph", "bodies_of", "read_graph"]

_SMALL = 1024  # elements of an initializer whose values shapes may depend on
_SYMBOL = 10  # letters of a dimension's name
_SCOPES = "pkg.torch.onnx.name_scopes"  # of a node that torch.onnx.export(dynamo=True) wrote


@dataclasses.dataclass(frozen=True)
class Graph:
    """A graph.

    Attributes:
        nodes: without those of constants, in the file's order.
        taken: names of the tensors that each node takes, its branches and bodies included.
        givers: tensor -> the node that gives it.
        scopes: of each node, where in the network it is.
        inputs: without initializers.
        types: type and shape of every tensor that the file or ONNX's shape inference tells: `FP32 [N, 64, 56, 56]`.
    """

    nodes: Sequence[onnx.NodeProto]
    taken: Sequence[frozenset[str]]
    givers: Mapping[str, int]
    scopes: Sequence[Scope]
    inputs: Sequence[str]
    outputs: Sequence[str]
    types: Mapping[str, str]

    def takers(self) -> list[list[int]]:
        """Of each node, those that take something of it."""
        takers: list[list[int]] = [[] for _ in self.nodes]
        for number, names in enumerate(self.taken):
            for giver in sorted({self.givers[name] for name in names if name in self.givers}):
                takers[giver].append(number)
        return takers


def read_graph(path: Path) -> Graph:
    """The graph of an ONNX file.

    Raises:
        SourceError: the file is damaged.
    """
    model = read_model(path)
    types = _types(model)
    graph = model.graph
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {tensor.values.name for tensor in graph.sparse_initializer}
    return Graph(
        nodes,
        [_taken(node) for node in nodes],
        {output: number for number, node in enumerate(nodes) for output in node.output if output},
        [_scope(node) for node in nodes],
        [value.name for value in graph.input if value.name not in constants],
        [value.name for value in graph.output],
        types,
    )


def bodies_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs inside a node: branches of an If, the body of a Loop or Scan, and those inside these."""
    own = [
        graph
        for attribute in node.attribute
        for graph in ((attribute.g,) if attribute.HasField("g") else tuple(attribute.graphs))
    ]
    return [inside for graph in own for inside in graphs_of(graph)]


def _types(model: onnx.ModelProto) -> dict[str, str]:
    import onnx

    for tensor in model.graph.initializer:
        size = 1
        for dim in tensor.dims:
            size *= dim
        if size > _SMALL:
            tensor.ClearField("raw_data")  # its shape is enough, and models have gigabytes of these
            tensor.ClearField("float_data")
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    # Of operators that ONNX does not know, or a graph that it takes for wrong, what the file tells is shown.
    with contextlib.suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        values += onnx.shape_inference.infer_shapes(model).graph.value_info
    return {value.name: label for value in values if (label := _type(value))}


def _type(value: onnx.ValueInfoProto) -> str:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return (kind or "").removesuffix("_type")
    tensor = value.type.tensor_type
    row = data_type(tensor.elem_type)
    name = row.triton if row else "?"
    if not tensor.HasField("shape"):
        return name
    dims = (str(dim.dim_value) if dim.HasField("dim_value") else _symbol(dim.dim_param) for dim in tensor.shape.dim)
    return f"{name} [{', '.join(dims)}]"


def _symbol(name: str) -> str:
    """A dimension's name, if a person gave it: exporters number theirs (`unk__21`, `p2o.DynamicDimension.0`)."""
    return name if name and len(name) <= _SYMBOL and not name.startswith("unk__") else "?"


def _taken(node: onnx.NodeProto) -> frozenset[str]:
    names = set(node.input)
    for body in bodies_of(node):
        names.update(name for inside in body.node for name in inside.input)
        names.update(value.name for value in body.output)
    return frozenset(names - {""})


def _scope(node: onnx.NodeProto) -> Scope:
    """Where in the network a node is: what exporters write into its name, or beside it."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            try:
                names = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                break
            if isinstance(names, list):
                return tuple(str(name) for name in names[:-1] if name)
    parts = [part for part in node.name.split("/") if part]
    return tuple(parts[:-1])
