"""Edits of a frozen GraphDef: inputs and outputs of its own, constants for what is never fed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from unified_backend.tensors import Signature
from unified_backend.toolchains.workers.tensorflow_branches import without_dead_branches
from unified_backend.toolchains.workers.tensorflow_sources import TENSORFLOW_TYPES, Frozen

__all__ = ["Ends", "bind"]


@dataclasses.dataclass(frozen=True)
class Ends:
    """A graph ready for the exporter: public name -> name of a tensor that is one input or output and nothing else."""

    graph: Any
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def bind(frozen: Frozen, signature: Signature, large: bool) -> Ends:
    """Give the graph a placeholder for each input and an identity for each output.

    Any tensor can then be an input, also one in the middle of the graph or with a default; two outputs can be one
    tensor, or an output an input. The placeholder has the signature's shape. Fed constants take the place of what
    they feed, and are folded, but for a graph so large that TensorFlow's optimiser would take too much memory.
    """
    if frozen.lite is not None:
        return Ends(None, frozen.inputs, frozen.outputs)
    import tensorflow as tf
    from tf2onnx.tf_loader import tf_optimize

    graph = frozen.graph
    for node in graph.node:
        if node.op == "PlaceholderWithDefault":  # what it is when it is not fed; tf2onnx makes an input of it
            node.op = "Identity"
            node.attr["T"].type = node.attr["dtype"].type
            del node.attr["dtype"], node.attr["shape"]
    prefix = "unified"
    while any(node.name.startswith(prefix) for node in graph.node):
        prefix += "_"
    replaced = {}
    made = []
    for number, spec in enumerate(signature.inputs):
        node = tf.compat.v1.NodeDef(name=f"{prefix}_input_{number}", op="Placeholder")
        node.attr["dtype"].type = _type(spec.dtype)
        shape = None if spec.shape is None else [size if isinstance(size, int) else None for size in spec.shape]
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(shape).as_proto())
        made.append(node)
        if spec.name in frozen.inputs:
            replaced[frozen.inputs[spec.name]] = node.name
    types = _types(graph)
    for number, (name, value) in enumerate(frozen.feeds.items()):
        node = tf.compat.v1.NodeDef(name=f"{prefix}_fed_{number}", op="Const")
        dtype = types.get(name.partition(":")[0])
        tensor = tf.make_tensor_proto(value, dtype=dtype)
        node.attr["dtype"].type = tensor.dtype
        node.attr["value"].tensor.CopyFrom(tensor)
        made.append(node)
        replaced[name] = node.name
    _redirect(graph, replaced)
    outputs = {}
    for number, spec in enumerate(signature.outputs):
        inner = frozen.outputs[spec.name]
        node = tf.compat.v1.NodeDef(name=f"{prefix}_output_{number}", op="Identity")
        node.input.append(replaced.get(inner, inner))
        node.attr["T"].type = _type(spec.dtype)
        made.append(node)
        outputs[spec.name] = f"{node.name}:0"
    graph.node.extend(made)
    inputs = {spec.name: f"{prefix}_input_{number}:0" for number, spec in enumerate(signature.inputs)}
    if frozen.optimise:
        without_dead_branches(graph)
    if frozen.optimise and not large:
        with tf.Graph().as_default():
            tf.import_graph_def(graph, name="")
            graph = tf_optimize(list(inputs.values()), list(outputs.values()), graph)
    return Ends(graph, inputs, outputs)


def _redirect(graph: Any, replaced: Mapping[str, str]) -> None:
    """Make the nodes take other tensors; a control dependency on what is replaced goes."""
    gone = {name.partition(":")[0] for name in replaced}
    for node in graph.node:
        for index in reversed(range(len(node.input))):
            name = node.input[index]
            if name.startswith("^"):
                if name[1:] in gone:
                    del node.input[index]
            else:
                node.input[index] = replaced.get(name if ":" in name else f"{name}:0", name)


def _types(graph: Any) -> dict[str, Any]:
    """Name of a node -> type of its first output, of those nodes that state it as placeholders do."""
    return {node.name: node.attr["dtype"].type for node in graph.node if "dtype" in node.attr}


def _type(triton: str) -> int:
    import tensorflow as tf

    number: int = tf.as_dtype(TENSORFLOW_TYPES[triton]).as_datatype_enum
    return number
