"""Nodes of an ONNX graph by name: each has one, and patterns find them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["at_opset", "hoist_constants", "matches", "named"]


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, a name given to every node without one: what is excluded, kept and measured is called by it."""
    taken = {node.name for node in model.graph.node if node.name}
    for number, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            taken.add(name)
            node.name = name
    return model


def matches(node: onnx.NodeProto, patterns: Sequence[str]) -> str | None:
    """The first pattern (`fnmatch`) that matches the node's name, its operator or the name of an output of it."""
    names = (node.name, node.op_type, *node.output)
    return next((one for one in patterns if any(fnmatch.fnmatch(name, one) for name in names)), None)


def at_opset(model: onnx.ModelProto, least: int) -> onnx.ModelProto:
    """The model in an opset of ONNX's own operators that is no lower; itself where it is so already.

    Raises:
        Exception: of any type, of ONNX's converter.
    """
    from onnx import version_converter

    if next((one.version for one in model.opset_import if not one.domain), 0) >= least:
        return model
    raised: onnx.ModelProto = version_converter.convert_version(model, least)
    return raised


def hoist_constants(graph: onnx.GraphProto) -> None:
    """Make initializers of constants, so that there is one kind of weight."""
    rest = []
    for node in graph.node:
        value = next((one.t for one in node.attribute if one.name == "value" and one.HasField("t")), None)
        if node.op_type == "Constant" and value is not None:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            rest.append(type(node).FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(rest)
