"""A graph with Q/DQ in FP8 around its layers, in ONNX's own operators and types."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_backend.graph.cast import Names
from unified_backend.graph.quantiser import LAYERS

if TYPE_CHECKING:
    import onnx

__all__ = ["OPSET", "Quantised", "float8"]

OPSET = 19  # the first whose QuantizeLinear has FP8
_LARGEST = 448.0  # of E4M3FN, which has 3 bits of mantissa and no infinities (OCP 8-bit floating point, 1.0)


@dataclasses.dataclass(frozen=True)
class Quantised:
    """What was made of a graph.

    Attributes:
        layers: that take FP8.
        kept: name of a layer -> why it stays in FP32.
    """

    model: onnx.ModelProto
    layers: int
    kept: Mapping[str, str]


def float8(model: onnx.ModelProto, ranges: Mapping[str, float], exclude: Sequence[str] = ()) -> Quantised:
    """The model with the inputs and the weights of its layers in FP8 (E4M3), one scale for each tensor.

    The largest value becomes the largest of the type. Biases and what lies between layers stay in FP32.

    Args:
        model: of `OPSET` or later, with its external data loaded; it is changed.
        ranges: value -> its largest absolute value as seen in FP32.
        exclude: patterns (`fnmatch`) of names of nodes, outputs of nodes or operators that stay in FP32.
    """
    graph = model.graph
    names = Names(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    done: dict[str, str] = {}
    made: list[onnx.NodeProto] = []
    kept: dict[str, str] = {}
    layers = 0
    for number, node in enumerate(list(graph.node)):
        copy = type(node).FromString(node.SerializeToString())
        if node.op_type in LAYERS:
            name = node.name or f"{node.op_type}_{number}"
            if why := _reason(node, name, exclude, ranges, weights):
                kept[name] = why
            else:
                layers += 1
                for at in (0, 1):
                    if node.input[at] not in done:
                        done[node.input[at]] = _quantised(graph, node.input[at], weights, ranges, names, made)
                    copy.input[at] = done[node.input[at]]
        made.append(copy)
    del graph.node[:]
    graph.node.extend(made)
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    rest = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(rest)
    return Quantised(model, layers, kept)


def _reason(
    node: onnx.NodeProto,
    name: str,
    exclude: Sequence[str],
    ranges: Mapping[str, float],
    weights: Mapping[str, onnx.TensorProto],
) -> str:
    """Why a layer stays in FP32; empty if it does not."""
    for pattern in exclude:
        if any(fnmatch.fnmatch(one, pattern) for one in (name, node.op_type, *node.output)):
            return f"excluded by {pattern}"
    unseen = [one for one in node.input[:2] if one not in weights and not ranges.get(one)]
    return f"{unseen[0]} was never anything but 0" if unseen else ""


def _quantised(
    graph: onnx.GraphProto,
    name: str,
    weights: Mapping[str, onnx.TensorProto],
    ranges: Mapping[str, float],
    names: Names,
    made: list[onnx.NodeProto],
) -> str:
    """The value as it is after FP8; weights are stored so."""
    import ml_dtypes
    from onnx import helper, numpy_helper

    values: Any = numpy_helper.to_array(weights[name]) if name in weights else None
    largest = ranges[name] if values is None else float(np.abs(values).max(initial=0.0))
    scale, zero, small, back = (names.new(f"{name}_{part}") for part in ("scale", "zero", "fp8", "from_fp8"))
    factor = np.float32(largest / _LARGEST or 1.0)
    graph.initializer.append(numpy_helper.from_array(np.asarray(factor), scale))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), ml_dtypes.float8_e4m3fn), zero))
    if values is None:
        made.append(helper.make_node("QuantizeLinear", [name, scale, zero], [small], names.new(f"{name}_quantize")))
    else:
        graph.initializer.append(numpy_helper.from_array((values / factor).astype(ml_dtypes.float8_e4m3fn), small))
    made.append(helper.make_node("DequantizeLinear", [small, scale, zero], [back], names.new(f"{name}_dequantize")))
    return back
