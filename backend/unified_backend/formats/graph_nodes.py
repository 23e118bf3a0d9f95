"""A TensorFlow graph as nodes and edges, and what a node's attributes tell of the tensors that it gives."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from unified_backend.errors import ConfigError
from unified_backend.formats.description import tensor_shape
from unified_backend.formats.tensorflow_messages import shape_of, triton_type
from unified_backend.tensors import TensorSpec

__all__ = ["Graph", "Tensor", "operators"]

_BOOLEAN = re.compile(r"^(Equal|NotEqual|Less|LessEqual|Greater|GreaterEqual|Logical\w+|All|Any|Is(Nan|Inf|Finite))$")
_STRINGS = re.compile(r"^(AsString|String\w+|Substr|EncodeBase64|RegexReplace|StaticRegexReplace|ReduceJoin|ReadFile)$")
# Ops whose output types are not their attribute T: op -> attribute or type of each output.
_TYPES: dict[str, tuple[str | int, ...]] = {
    "ArgMax": ("output_type",),
    "ArgMin": ("output_type",),
    "Bucketize": (3,),
    "Cast": ("DstT",),
    "DecodeJpeg": (4,),
    "LookupTableFind": ("Tout",),
    "LookupTableFindV2": ("Tout",),
    "NonMaxSuppressionV3": (3,),
    "Rank": (3,),
    "Shape": ("out_type",),
    "Size": ("out_type",),
    "StringToNumber": ("out_type",),
    "TopKV2": ("T", 3),
    "Where": (9,),
}
_DEFAULTS = {"ArgMax": 9, "ArgMin": 9, "Shape": 3, "Size": 3, "StringToNumber": 1}
_USUAL = ("T", "dtype", "DstT", "out_type", "Tout", "Tparams", "element_dtype")
_LISTS = ("Tout", "output_types", "component_types", "T")
# Ops with several outputs that are worth serving; of any other, the first.
_COUNTS = {"Split": "num_split", "SplitV": "num_split", "Unpack": "num"}
_SCALARS_SINCE = 24  # GraphDef version: before, a placeholder of shape [] was one of unknown shape


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One output of a node, and the shape that the user gave it."""

    node: str
    port: int
    shape: tuple[int | None, ...] | None = None

    @property
    def public(self) -> str:
        """The name it is served under."""
        return self.node if self.port == 0 else f"{self.node}:{self.port}"


class Graph:
    """A GraphDef.

    Attributes:
        nodes: by name, in the file's order.
    """

    def __init__(self, message: Any) -> None:
        self.nodes: dict[str, Any] = {node.name: node for node in message.node}
        self._producer = message.versions.producer

    @cached_property
    def consumers(self) -> dict[str, list[str]]:
        """Node -> the nodes that take what it gives."""
        return self._users(control=False)

    @cached_property
    def controlled(self) -> dict[str, list[str]]:
        """Node -> the nodes that only wait for it."""
        return self._users(control=True)

    def _users(self, control: bool) -> dict[str, list[str]]:
        users: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for reference in node.input:
                if reference.startswith("^") is control:
                    users.setdefault(_split(reference.lstrip("^"))[0], []).append(node.name)
        return users

    def inputs_of(self, name: str) -> list[tuple[str, int]]:
        """Node and output of each tensor that a node takes."""
        return [_split(reference) for reference in self.nodes[name].input if not reference.startswith("^")]

    def tensor(self, text: str, parameter: str, label: str) -> Tensor:
        """The tensor that a user named, in tf2onnx's notation.

        Raises:
            ConfigError: the graph has no such node.
        """
        name, shape = tensor_shape(text)
        node, port = _split(name)
        if node not in self.nodes:
            close = difflib.get_close_matches(node, self.nodes, 3) or list(self.nodes)[-3:]
            raise ConfigError(
                f'{label}: parameter "{parameter}" names "{text}"',
                f"the graph has no node of that name; near it: {', '.join(close)}",
                "Correct it; `triton-unified inspect` shows the graph's ends",
            )
        return Tensor(node, port, shape)

    def ports(self, name: str) -> range:
        """The outputs of a node that are worth serving."""
        node = self.nodes[name]
        count = node.attr[_COUNTS[node.op]].i if node.op in _COUNTS and _COUNTS[node.op] in node.attr else 1
        return range(min(max(count, 1), 64))

    def spec(self, tensor: Tensor) -> TensorSpec:
        """Name, type and shape of a tensor as far as attributes tell: FP32 and an unknown rank where they do not."""
        node = self.nodes[tensor.node]
        dtype = triton_type(_type_number(node, tensor.port)) or "FP32"
        return TensorSpec(
            tensor.public, dtype, self._shape(node, tensor.port) if tensor.shape is None else tensor.shape
        )

    def _shape(self, node: Any, port: int) -> tuple[int | None, ...] | None:
        if node.op.startswith("Placeholder") and "shape" in node.attr:
            shape = shape_of(node.attr["shape"].shape)
            return None if shape == () and self._producer < _SCALARS_SINCE else shape
        shapes = node.attr["_output_shapes"].list.shape if "_output_shapes" in node.attr else ()
        return shape_of(shapes[port]) if port < len(shapes) else None


def operators(graph: Any) -> dict[str, int]:
    """Operator -> how often it is in a GraphDef and its functions, the most frequent first."""
    counts = Counter(node.op for node in _all_nodes(graph))
    return dict(sorted(counts.items(), key=lambda row: (-row[1], row[0])))


def _all_nodes(graph: Any) -> Iterable[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def _type_number(node: Any, port: int) -> int:
    """DataType of an output, 0 if it is not stated."""
    if _BOOLEAN.match(node.op):
        return 10
    if node.op in _TYPES:
        row = _TYPES[node.op]
        kind = row[min(port, len(row) - 1)]
        if isinstance(kind, int):
            return kind
        return int(node.attr[kind].type) if kind in node.attr else _DEFAULTS.get(node.op, 0)
    if _STRINGS.match(node.op):
        return 7
    for name in _LISTS:
        if name in node.attr and port < len(node.attr[name].list.type):
            return int(node.attr[name].list.type[port])
    return next((int(node.attr[name].type) for name in _USUAL if name in node.attr and node.attr[name].type), 0)


def _split(reference: str) -> tuple[str, int]:
    """Node and output number of `name`, `name:0`."""
    name, colon, port = reference.rpartition(":")
    # A port too long to be one is part of a name, as damage makes them.
    return (name, int(port)) if colon and port.isdecimal() and len(port) < 10 else (reference, 0)
