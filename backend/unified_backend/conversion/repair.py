"""Repairs of ONNX graphs: what converters and exporters leave that no engine takes, or takes only at a cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from unified_backend.conversion.batch import free_batch
from unified_backend.conversion.interface import graphs_of

if TYPE_CHECKING:
    import onnx

__all__ = [
    "MAX_IR_VERSION",
    "MAX_OPSET",
    "for_every_engine",
    "free_batch",
    "repair",
    "unknown_operators",
]

MAX_OPSET = 26  # the newest of the default domain that ONNX Runtime 1.31.1 reads
MAX_IR_VERSION = 13  # the newest that ONNX Runtime 1.31.1 reads; onnx 1.23 writes 14, whose additions are annotations
_INITIALIZERS_NEED_NO_INPUT = 4  # IR version from which an initializer need not be listed among the graph's inputs

_STANDARD = ("", "ai.onnx")
_CAST_LIKE = 15  # opset since which a constant can take the type of another tensor


def repair(model: onnx.ModelProto) -> list[str]:
    """Replace operators that are none of ONNX by ones that are, and withdraw shapes that were guessed wrong.

    Returns:
        what was done, one phrase each.
    """
    done = []
    if count := sum(_undeclare_scalars(graph) for graph in graphs_of(model.graph)):
        done.append(f"shapes of values that loops carry left to inference ({count})")
    for operator, expand in _EXPANSIONS.items():
        count = sum(_replace(graph, operator, expand, model) for graph in graphs_of(model.graph))
        if count:
            done.append(f"{operator} written with ONNX operators ({count})")
    return done


def unknown_operators(model: onnx.ModelProto, domains: Collection[str] = ()) -> dict[str, int]:
    """Operators that ONNX's schema does not have in the model's opset, and how many nodes use each.

    Converters write their source's operators into the graph when they know no other, and report success.

    Args:
        domains: further domains that are taken as known.
    """
    from onnx import defs

    versions = {entry.domain: entry.version for entry in model.opset_import}
    local = {(function.domain, function.name) for function in model.functions}
    counts: Counter[str] = Counter()
    for graph in graphs_of(model.graph):
        for node in graph.node:
            domain = "" if node.domain in _STANDARD else node.domain
            if (domain and domain in domains) or (node.domain, node.op_type) in local:
                continue
            if not defs.has(node.op_type, versions.get(domain, 0), domain):
                counts[f"{domain}.{node.op_type}" if domain else node.op_type] += 1
    return dict(counts)


def for_every_engine(model: onnx.ModelProto) -> list[str]:
    """Make any ONNX model fit every engine, without changing what it computes.

    Initializers leave the list of graph inputs (they are constants; listed, they keep optimisers from folding them and
    look like required inputs after it), and the IR version and the opset are brought to ones that engines read, the
    opset only if no operator of the model has changed since.

    Returns:
        what was changed, one phrase each.
    """
    changes = []
    initializers = {tensor.name for tensor in model.graph.initializer}
    initializers |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    if len(inputs) < len(model.graph.input):
        changes.append(f"{len(model.graph.input) - len(inputs)} initializers taken off the inputs")
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, _INITIALIZERS_NEED_NO_INPUT)
    if model.ir_version > MAX_IR_VERSION:
        changes.append(f"IR version {model.ir_version} written as {MAX_IR_VERSION}")
        model.ir_version = MAX_IR_VERSION
    newest = max((entry.version for entry in model.opset_import if entry.domain == ""), default=0)
    if newest > MAX_OPSET and _unchanged_since(MAX_OPSET, newest, model):
        changes.append(f"opset {newest} written as {MAX_OPSET}, between which no operator of the model changed")
        for holder in (model, *model.functions):
            for entry in holder.opset_import:
                if entry.domain == "":
                    entry.version = min(entry.version, MAX_OPSET)
    return changes


def _undeclare_scalars(graph: onnx.GraphProto) -> int:
    """TensorFlow Lite writes the shape [] for scalars and for shapes it does not know; tf2onnx takes both as scalars.

    In the body of a loop that contradicts what the loop is given, and ONNX Runtime refuses the model. Without it, the
    shape is that of the value that goes in.
    """
    count = 0
    for node in graph.node:
        if node.op_type != "Loop":
            continue
        given = {name for name in node.input[2:] if _rank(graph, name) != 0}
        body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
        for name, value in zip(node.input[2:], body.input[2:], strict=False):
            if name in given and value.type.tensor_type.HasField("shape") and not value.type.tensor_type.shape.dim:
                value.type.tensor_type.ClearField("shape")
                count += 1
    return count


def _rank(graph: onnx.GraphProto, name: str) -> int | None:
    """The rank of a constant of the graph."""
    return next((len(tensor.dims) for tensor in graph.initializer if tensor.name == name), None)


class _Nodes:
    """Nodes that take the place of one: each call adds one and gives the name of its result."""

    def __init__(self, node: onnx.NodeProto, opset: int) -> None:
        self.made: list[onnx.NodeProto] = []
        self._name, self._like, self._opset = node.output[0], node.input[0], opset

    def __call__(self, operator: str, *inputs: str, output: str = "") -> str:
        from onnx import helper

        output = output or f"{self._name}_{operator.lower()}_{len(self.made)}"
        self.made.append(helper.make_node(operator, list(inputs), [output], name=output))
        return output

    def constant(self, value: float) -> str:
        """A scalar of the element type of the node's input; before opset 15 none but FP32 can be written."""
        from onnx import TensorProto, helper

        output = f"{self._name}_constant_{len(self.made)}"
        tensor = helper.make_tensor(output, TensorProto.FLOAT, (), [value])
        self.made.append(helper.make_node("Constant", [], [output], name=output, value=tensor))
        return self("CastLike", output, self._like) if self._opset >= _CAST_LIKE else output


def _erfc(node: onnx.NodeProto, nodes: _Nodes) -> None:
    """Erfc(x) = 1 - Erf(x): TensorFlow's exact GELU is written with Erfc, which ONNX lacks and tf2onnx leaves as it is.

    The absolute error is that of Erf, 1e-7; only far out, where Erfc is below that, is the relative error larger.
    """
    nodes("Sub", nodes.constant(1), nodes("Erf", node.input[0]), output=node.output[0])


def _gelu(node: onnx.NodeProto, nodes: _Nodes) -> None:
    """TensorFlow Lite's GELU: x/2 (1 + erf(x/sqrt(2))), or the tanh formula where the operator says `approximate`.

    ONNX has Gelu since opset 20; tf2onnx writes opset 18 at most, and leaves `TFL_GELU`.
    """
    x = node.input[0]
    if any(attribute.name == "approximate" and attribute.i for attribute in node.attribute):
        cube = nodes("Mul", nodes("Mul", x, x), nodes("Mul", x, nodes.constant(0.044715)))
        inner = nodes("Tanh", nodes("Mul", nodes("Add", x, cube), nodes.constant(math.sqrt(2 / math.pi))))
    else:
        inner = nodes("Erf", nodes("Mul", x, nodes.constant(math.sqrt(0.5))))
    half = nodes("Mul", x, nodes.constant(0.5))
    nodes("Mul", half, nodes("Add", inner, nodes.constant(1)), output=node.output[0])


_EXPANSIONS: dict[str, Callable[[onnx.NodeProto, _Nodes], None]] = {"Erfc": _erfc, "TFL_GELU": _gelu}


def _replace(
    graph: onnx.GraphProto, operator: str, expand: Callable[[onnx.NodeProto, _Nodes], None], model: onnx.ModelProto
) -> int:
    opset = next((entry.version for entry in model.opset_import if entry.domain in _STANDARD), 0)
    made: list[onnx.NodeProto] = []
    count = 0
    for node in graph.node:
        if node.op_type == operator and node.domain in _STANDARD:
            nodes = _Nodes(node, opset)
            expand(node, nodes)
            made.extend(nodes.made)
            count += 1
        else:
            made.append(node)
    if count:
        copies = [type(node).FromString(node.SerializeToString()) for node in made]
        del graph.node[:]
        graph.node.extend(copies)
    return count


def _unchanged_since(older: int, newer: int, model: onnx.ModelProto) -> bool:
    """Whether every operator of the default domain means the same in both opsets."""
    from onnx import defs

    if newer > defs.onnx_opset_version():
        return False  # nobody here knows what changed

    def unchanged(node: onnx.NodeProto) -> bool:
        if node.domain == "" and (
            not defs.has(node.op_type) or defs.get_schema(node.op_type, newer).since_version > older
        ):
            return False
        graphs = (graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs))
        return all(unchanged(inner) for graph in graphs for inner in graph.node)

    return all(unchanged(node) for holder in (model.graph, *model.functions) for node in holder.node)
