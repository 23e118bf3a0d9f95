"""TensorFlow graphs with their weights inside: a frozen GraphDef, `.pb` or `.pbtxt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unified_backend.formats.description import Description, renamed, telling
from unified_backend.formats.graph_ends import find_ends
from unified_backend.formats.graph_nodes import Graph, operators
from unified_backend.formats.tensorflow_files import kind_of
from unified_backend.formats.tensorflow_messages import DATA_TYPES, read_message, shape_of
from unified_backend.settings import Settings

__all__ = ["GraphDef", "describe_graph"]


class GraphDef:
    """The GraphDef format: one protobuf file."""

    name = "graphdef"

    def detect(self, path: Path) -> bool:
        """Whether the file's fields are those of a GraphDef, and its first node is one.

        Raises:
            SourceError: it begins as one and ends too early.
        """
        kind = kind_of(path)
        return kind is not None and kind.message == "GraphDef"

    def companions(self, path: Path) -> list[str]:
        """None: a frozen graph is whole."""
        return []

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What goes in and what comes out, found in the graph or named by the settings.

        Raises:
            SourceError: the message is damaged, not frozen, or its ends are not to be found.
            ConfigError: a parameter names what the model has not got.
        """
        kind = kind_of(path)
        message = read_message(path, "GraphDef", kind is not None and kind.text, "GraphDef")
        return describe_graph(message, settings, label, frozen=True)


def describe_graph(message: Any, settings: Settings, label: str, frozen: bool) -> Description:
    """The description of a graph that has no signature.

    Args:
        message: GraphDef.
        frozen: the weights must be in it.

    Raises:
        SourceError: its ends are not to be found, or need what nobody feeds.
        ConfigError: a parameter names what the model has not got.
    """
    graph = Graph(message)
    facts = {
        "producer": message.versions.producer,
        "nodes": len(message.node),
        "placeholders": {
            node.name: {"dtype": _type_name(node), "shape": _shape_list(node)}
            for node in graph.nodes.values()
            if node.op.startswith("Placeholder")
        },
        "functions": sorted(function.signature.name for function in message.library.function),
        "operators": operators(message),
    }
    with telling(facts):
        ends = find_ends(graph, settings.inputs, settings.outputs, label, frozen)
    feeds = {"feeds": dict(ends.feeds)}
    described = Description(ends.inputs, ends.outputs, ends.inner, feeds, {**feeds, **facts}, ends.notes)
    return renamed(described, settings.names, label)


def _type_name(node: Any) -> str:
    number = node.attr["dtype"].type if "dtype" in node.attr else 0
    return DATA_TYPES.get(number, str(number))


def _shape_list(node: Any) -> list[int] | None:
    shape = shape_of(node.attr["shape"].shape) if "shape" in node.attr else None
    return None if shape is None else [-1 if size is None else size for size in shape]
