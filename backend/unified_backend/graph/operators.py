"""What a graph consists of, and what became of its nodes on the way to another one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from unified_backend.conversion.interface import graphs_of

if TYPE_CHECKING:
    import onnx

__all__ = ["Changes", "census", "changes", "foreign"]

_OWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training")
# They draw anew at every run, whatever they are given.
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")

# With a constant, what a convolution or a matrix product beside it can do as well, with other weights.
_ABSORBED = ("Add", "BatchNormalization", "Div", "Mul", "Pad", "Sub")


@dataclasses.dataclass(frozen=True)
class Changes:
    """From one graph to another that computes the same: operator -> number of nodes.

    Attributes:
        folded: gone because all that they take is constant: their values are in the model now.
        fused: gone into another operator: it gives their result, or has their constants among its own.
        removed: gone otherwise: without effect, there twice, needed by no output, or replaced by another operator.
        added: more of them than before.
    """

    folded: Mapping[str, int]
    fused: Mapping[str, int]
    removed: Mapping[str, int]
    added: Mapping[str, int]


def census(model: onnx.ModelProto) -> Counter[str]:
    """Number of nodes by operator, `domain.Operator` outside ONNX's default domain; in branches and loops too."""
    return Counter(_name(node) for graph in graphs_of(model.graph) for node in graph.node)


def foreign(operators: Mapping[str, int]) -> set[str]:
    """Those of a census that are in none of ONNX's own domains: not every engine has them."""
    return {name for name in operators if name.rpartition(".")[0] not in _OWN_DOMAINS}


def changes(before: onnx.ModelProto, after: onnx.ModelProto) -> Changes:
    """What became of the nodes of a model, told by the names of their results.

    A fusion may keep either name, so the names only divide what the two censuses say is gone.
    """
    one, other = census(before), census(after)
    constant = _constant(before.graph)
    makers = {output: _name(node) for node in after.graph.node for output in node.output if output}
    found: dict[str, Counter[str]] = {"folded": Counter(), "fused": Counter()}
    for node in before.graph.node:
        if any(makers.get(output) == _name(node) for output in node.output):
            continue
        if all(output in constant for output in node.output):
            found["folded"][_name(node)] += 1
        elif any(output in makers for output in node.output) or (
            node.op_type in _ABSORBED and any(name in constant for name in node.input)
        ):
            found["fused"][_name(node)] += 1
    gone = one - other
    folded = gone & found["folded"]
    fused = (gone - folded) & found["fused"]
    return Changes(*(dict(sorted(part.items())) for part in (folded, fused, gone - folded - fused, other - one)))


def _constant(graph: onnx.GraphProto) -> set[str]:
    """Names of tensors that depend on nothing but what is in the model."""
    found = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        inner = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        if node.op_type not in _RANDOM and not inner and all(name in found for name in node.input if name):
            found.update(node.output)
    return found


def _name(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
