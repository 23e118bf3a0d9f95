"""Post-processing as part of the graph: fragments composed behind a model's outputs, so that the engine runs them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from unified_backend.errors import ConfigError
from unified_backend.stages.expression import Call
from unified_backend.stages.fragments.boxes import nms, ssd, yolo
from unified_backend.stages.fragments.classes import argmax, sigmoid, softmax, topk
from unified_backend.stages.fragments.graph import Graph
from unified_backend.stages.fragments.labels import LookUp
from unified_backend.stages.fragments.options import Options
from unified_backend.stages.fragments.text import ctc_greedy
from unified_backend.tensors import Signature

if TYPE_CHECKING:
    import onnx

__all__ = ["FRAGMENTS", "RECIPE", "Composed", "LookUp", "compose"]

RECIPE = 2  # part of the composed model's key: raised when the same call would give another graph

Fragment = Callable[[Graph, Options], list[LookUp]]

FRAGMENTS: dict[str, tuple[Fragment, tuple[str, ...]]] = {
    "softmax": (softmax, ("axis",)),
    "sigmoid": (sigmoid, ()),
    "argmax": (argmax, ("axis",)),
    "topk": (topk, ("k", "labels")),
    "nms": (nms, ()),
    "yolo": (yolo, ("version",)),
    "ssd": (ssd, ("anchors",)),
    "ctc_greedy": (ctc_greedy, ("charset",)),
}


@dataclasses.dataclass(frozen=True)
class Composed:
    """A model with fragments behind its outputs.

    Attributes:
        labels: output -> how it is looked up in what the model gives.
    """

    model: onnx.ModelProto
    signature: Signature
    labels: dict[str, LookUp]


def compose(model: onnx.ModelProto, signature: Signature, calls: Sequence[Call], label: str) -> Composed:
    """The model with the fragments behind its outputs; those that no fragment takes stay.

    Args:
        model: changed in place; its external data need not be loaded.
        signature: its inputs and outputs.
        calls: of the parameter `postprocess`.
        label: for messages.

    Raises:
        ConfigError: there is no such fragment, it does not fit the model, or an option is wrong; names it.
    """
    graph = Graph(model, signature, label)
    labels: dict[str, LookUp] = {}
    for call in calls:
        if call.name not in FRAGMENTS:
            close = difflib.get_close_matches(call.name, FRAGMENTS, n=1)
            raise ConfigError(
                f'{label}: parameter "postprocess" names {call.name}',
                f"there are {', '.join(FRAGMENTS)}, and a file NAME.py of the version folder as the last",
                f"Did you mean {close[0]}?" if close else "Write one of these",
            )
        fragment, names = FRAGMENTS[call.name]
        options = Options(call, label, names)
        found = fragment(graph, options)
        options.done()
        labels.update({one.name: one for one in found})
    # A later fragment may have consumed what an earlier one was to be looked up in.
    labels = {name: one for name, one in labels.items() if all(source in graph.outputs for source in one.sources)}
    graph.finish()
    return Composed(graph.model, Signature(signature.inputs, tuple(graph.outputs.values())), labels)
