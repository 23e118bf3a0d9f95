"""Operators that MXNet's exporter writes wrongly or not at all, written by us; each has its reason and a test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["register"]

_EPSILON = 1e-10  # of L2NormalizationParam in src/operator/l2_normalization-inl.h
Node = Mapping[str, Any]


def register(ranks: Mapping[str, int]) -> None:
    """Put the mappings in place of the exporter's own.

    Args:
        ranks: name of a node -> of its first output.
    """
    from mxnet.onnx.mx2onnx._export_onnx import MXNetGraph

    own = MXNetGraph.registry_[12]
    theirs = own.setdefault("their LeakyReLU", own["LeakyReLU"])
    own["LeakyReLU"] = lambda node, **given: (
        _prelu(node, ranks, given) if _attributes(node).get("act_type") == "prelu" else theirs(node, **given)
    )
    own["L2Normalization"] = lambda node, **given: _l2_normalization(node, ranks, given)


def _prelu(node: Node, ranks: Mapping[str, int], given: Mapping[str, Any]) -> list[Any]:
    """MXNet's slope has a value for each channel, the second dimension; ONNX would align it with the last."""
    from onnx import helper

    name, data, slope = node["name"], *_inputs(node, given)
    shape = [-1, *(1,) * (ranks[_source(node, given)] - 2)]
    given["initializer"].append(helper.make_tensor(f"{name}_shape", 7, [len(shape)], shape))
    return [
        helper.make_node("Reshape", [slope, f"{name}_shape"], [f"{name}_slope"]),
        helper.make_node("PRelu", [data, f"{name}_slope"], [name], name=name),
    ]


def _l2_normalization(node: Node, ranks: Mapping[str, int], given: Mapping[str, Any]) -> list[Any]:
    """The exporter knows the mode `channel` alone, and leaves out what keeps a division by zero away."""
    from onnx import helper, numpy_helper

    name, data = node["name"], *_inputs(node, given)
    attributes = _attributes(node)
    rank = ranks[_source(node, given)]
    axes = {"instance": range(1, rank), "channel": (1,), "spatial": range(2, rank)}[attributes.get("mode", "instance")]
    least = np.array(attributes.get("eps", _EPSILON), np.float32)
    given["initializer"].append(numpy_helper.from_array(least, f"{name}_least"))
    return [
        helper.make_node("ReduceSumSquare", [data], [f"{name}_sum"], axes=list(axes), keepdims=1),
        helper.make_node("Add", [f"{name}_sum", f"{name}_least"], [f"{name}_square"]),
        helper.make_node("Sqrt", [f"{name}_square"], [f"{name}_norm"]),
        helper.make_node("Div", [data, f"{name}_norm"], [name], name=name),
    ]


def _attributes(node: Node) -> Mapping[str, str]:
    return dict(node.get("attrs") or {})


def _inputs(node: Node, given: Mapping[str, Any]) -> list[str]:
    return [given["outputs_lookup"][source][index].name for source, index, *_ in node["inputs"]]


def _source(node: Node, given: Mapping[str, Any]) -> str:
    """The name of the node that the first input comes from."""
    return str(given["mx_graph"][node["inputs"][0][0]]["name"])
