"""A graph with Q/DQ in FP8 around its layers, in ONNX's own operators and types."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_backend.graph.cast import Names
from unified_backend.graph.nodes import hoist_constants, matches, named
from unified_backend.graph.quantiser import LAYERS

if TYPE_CHECKING:
    import onnx

__all__ = ["OPSET", "Quantised", "float8", "layers_in"]

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
    """The model with the inputs and the weights of its layers in FP8 (E4M3).

    The largest value becomes the largest of the type; of a convolution's weights, that of each output channel. Biases
    and what lies between layers stay in FP32.

    Args:
        model: of `OPSET` or later, with its external data loaded; it is changed.
        ranges: value -> its largest absolute value as seen in FP32.
        exclude: patterns (`fnmatch`) of names of nodes, outputs of nodes or operators that stay in FP32.
    """
    graph = named(model).graph
    hoist_constants(graph)
    names = Names(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    done: dict[str, str] = {}
    made: list[onnx.NodeProto] = []
    kept: dict[str, str] = {}
    layers = 0
    for node in list(graph.node):
        copy = type(node).FromString(node.SerializeToString())
        if node.op_type in LAYERS:
            if why := _reason(node, exclude, ranges, weights):
                kept[node.name] = why
            else:
                layers += 1
                for at, name in enumerate(node.input[:2]):
                    axis = 0 if node.op_type == "Conv" and at == 1 and name in weights else None
                    if name not in done:
                        done[name] = _quantised(graph, name, weights, ranges, names, made, axis)
                    copy.input[at] = done[name]
        made.append(copy)
    del graph.node[:]
    graph.node.extend(made)
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    rest = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(rest)
    return Quantised(model, layers, kept)


def layers_in(model: onnx.ModelProto) -> list[str]:
    """Names of the layers with weights, as `float8` calls them."""
    return [node.name for node in named(model).graph.node if node.op_type in LAYERS]


def _reason(
    node: onnx.NodeProto, exclude: Sequence[str], ranges: Mapping[str, float], weights: Mapping[str, onnx.TensorProto]
) -> str:
    """Why a layer stays in FP32; empty if it does not."""
    if pattern := matches(node, exclude):
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
    axis: int | None,
) -> str:
    """The value as it is after FP8; weights are stored so.

    Args:
        axis: of a weight, along which each slice has a scale of its own; None for one scale.
    """
    import ml_dtypes
    from onnx import helper, numpy_helper

    values: Any = numpy_helper.to_array(weights[name]) if name in weights else None
    if values is None:
        largest: Any = np.float32(ranges[name])
    elif axis is None:
        largest = np.abs(values).max(initial=0.0)
    else:
        largest = np.abs(values).max(axis=tuple(one for one in range(values.ndim) if one != axis), initial=0.0)
    scale, zero, small, back = (names.new(f"{name}_{part}") for part in ("scale", "zero", "fp8", "from_fp8"))
    factor = np.where(largest > 0, largest / _LARGEST, 1.0).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(factor, scale))
    graph.initializer.append(numpy_helper.from_array(np.zeros(factor.shape, ml_dtypes.float8_e4m3fn), zero))
    if values is None:
        made.append(helper.make_node("QuantizeLinear", [name, scale, zero], [small], names.new(f"{name}_quantize")))
    else:
        across = factor.reshape([-1 if one == axis else 1 for one in range(values.ndim)]) if factor.ndim else factor
        graph.initializer.append(numpy_helper.from_array((values / across).astype(ml_dtypes.float8_e4m3fn), small))
    last = helper.make_node("DequantizeLinear", [small, scale, zero], [back], names.new(f"{name}_dequantize"))
    if axis is not None:
        last.attribute.append(helper.make_attribute("axis", axis))
    made.append(last)
    return back
