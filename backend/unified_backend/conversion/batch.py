"""Frees the batch dimension of a graph that was exported at batch 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unified_backend.conversion.interface import graphs_of

if TYPE_CHECKING:
    import onnx

__all__ = ["free_batch"]

_BATCH = "batch"
_TO_THE_END = np.iinfo(np.int64).max
_Shape = tuple[int | None, ...]
_Constants = Mapping[str, npt.NDArray[Any]]


def free_batch(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with an open first dimension in place of 1, as far as the graph can be read to allow it.

    Files of TensorFlow Lite state batch 1 more often than they need it: in most of them only the constants that shape
    tensors hold the 1. They are rewritten here: targets of Reshape, sizes of Resize, ends of Slice, and initial states
    of recurrent layers. Whether that was right shows only in a run: the caller compares rows of a batch with the
    answers of the fixed model.

    Returns:
        None where an input or output has no first dimension of 1.
    """
    import onnx

    values = (*model.graph.input, *model.graph.output)
    if not model.graph.input or not all(_leads_with_one(value) for value in values):
        return None
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    shapes = _shapes(model)
    constants = _constants(model)
    graph = freed.graph
    nodes = []
    for node in graph.node:
        match node.op_type:
            case "Reshape":
                _free_reshape(graph, node, shapes, constants)
            case "Slice":
                _free_slice(graph, node, shapes, constants)
            case "Resize":
                nodes.extend(_free_resize(graph, node, shapes, constants))
            case "LSTM" | "GRU" | "RNN":
                _free_states(node, constants)
        nodes.append(node)
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    used = {name for each in graphs_of(graph) for node in each.node for name in node.input}
    used |= {value.name for value in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = _BATCH
    return freed


def _leads_with_one(value: onnx.ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return bool(dims) and dims[0].dim_value == 1


def _shapes(model: onnx.ModelProto) -> dict[str, _Shape]:
    """The shapes at batch 1, as far as shape inference gets."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _constants(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    from onnx import TensorProto, numpy_helper

    inline = [tensor for tensor in model.graph.initializer if tensor.data_location != TensorProto.EXTERNAL]
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in inline}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _replace(graph: onnx.GraphProto, node: onnx.NodeProto, index: int, value: npt.NDArray[np.int64]) -> None:
    """Give the node a constant of its own: others may use the one it had for what is no batch."""
    from onnx import numpy_helper

    name = f"{node.output[0]}_free_{index}"
    graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[index] = name


def _free_reshape(
    graph: onnx.GraphProto, node: onnx.NodeProto, shapes: Mapping[str, _Shape], constants: _Constants
) -> None:
    """The batch is the first dimension of what goes in, alone or multiplied into it, and so it is of what comes out."""
    target, source = constants.get(node.input[1]), shapes.get(node.input[0])
    if target is None or not target.size or not source or node.input[0] in constants:
        return
    freed = target.astype(np.int64)
    allow_zero = any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute)
    if source[0] == 1 and freed[0] == 1 and not allow_zero:
        freed[0] = 0  # as it is in what goes in; the one dimension that may be -1 stays free for another
    else:
        known = shapes.get(node.output[0], ())
        for axis in np.flatnonzero(freed == -1):
            size = known[axis] if axis < len(known) else None
            if size is None:
                return
            freed[axis] = size
        freed[0] = -1
    _replace(graph, node, 1, freed)


def _free_slice(
    graph: onnx.GraphProto, node: onnx.NodeProto, shapes: Mapping[str, _Shape], constants: _Constants
) -> None:
    """A slice [0:1] of a first dimension of 1 takes all of it."""
    parts = [constants[name] for name in node.input[1:4] if name in constants]
    source = shapes.get(node.input[0])
    if len(parts) < len(node.input[1:4]) or not source or source[0] != 1:
        return
    starts, ends = parts[0], parts[1].astype(np.int64)
    axes = parts[2] if len(parts) == 3 else np.arange(len(starts))
    whole = (axes % len(source) == 0) & (starts == 0) & (ends >= 1)
    if whole.any():
        _replace(graph, node, 2, np.where(whole, _TO_THE_END, ends))


def _free_resize(
    graph: onnx.GraphProto, node: onnx.NodeProto, shapes: Mapping[str, _Shape], constants: _Constants
) -> list[onnx.NodeProto]:
    """Sizes [1, C, H, W] become the batch of what goes in, and [C, H, W]."""
    from onnx import helper, numpy_helper

    sizes = constants.get(node.input[3]) if len(node.input) == 4 else None
    source = shapes.get(node.input[0])
    if sizes is None or not source or source[0] != 1 or sizes[0] != 1:
        return []
    name = node.output[0]
    graph.initializer.append(numpy_helper.from_array(sizes[1:].astype(np.int64), f"{name}_free_rest"))
    node.input[3] = f"{name}_free_sizes"
    return [
        helper.make_node("Shape", [node.input[0]], [f"{name}_free_batch"], end=1),
        helper.make_node("Concat", [f"{name}_free_batch", f"{name}_free_rest"], [node.input[3]], axis=0),
    ]


def _free_states(node: onnx.NodeProto, constants: _Constants) -> None:
    """Initial states of zeros, [directions, 1, size], are what a recurrent operator takes when it is given none."""
    for index in (5, 6):
        if index < len(node.input) and node.input[index] in constants and not constants[node.input[index]].any():
            node.input[index] = ""
