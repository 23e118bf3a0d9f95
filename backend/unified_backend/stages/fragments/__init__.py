"""Post-processing as part of the graph: fragments composed behind a model's outputs, so that the engine runs them."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified_backend.errors import ConfigError
from unified_backend.stages.expression import Call
from unified_backend.stages.fragments.boxes import nms, ssd, yolo
from unified_backend.stages.fragments.classes import argmax, sigmoid, softmax, topk
from unified_backend.stages.fragments.graph import Graph
from unified_backend.stages.fragments.labels import FILES, LookUp, characters, read_charset, read_labels
from unified_backend.stages.fragments.options import Options
from unified_backend.stages.fragments.text import ctc_greedy
from unified_backend.tensors import Signature

if TYPE_CHECKING:
    import onnx

__all__ = ["FRAGMENTS", "RECIPE", "Composed", "LookUp", "compose", "key_fields", "read_look_up"]

RECIPE = 3  # part of the composed model's key: raised when the same call would give another graph

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
    for number, call in enumerate(calls):
        if call.name not in FRAGMENTS:
            close = difflib.get_close_matches(call.name, FRAGMENTS, n=1)
            raise ConfigError(
                f'{label}: parameter "postprocess" names {call.name}',
                f"there are {', '.join(FRAGMENTS)}, and a file NAME.py of the version folder as the last",
                f"Did you mean {close[0]}?" if close else "Write one of these",
            )
        fragment, names = FRAGMENTS[call.name]
        options = Options(call, label, names)
        for one in fragment(graph, options):
            named = isinstance(options.given.get(FILES[one.kind]), Path)
            labels[one.name] = dataclasses.replace(one, call=number) if named else one
        options.done()
    # A later fragment may have consumed what an earlier one was to be looked up in.
    labels = {name: one for name, one in labels.items() if all(source in graph.outputs for source in one.sources)}
    graph.finish()
    return Composed(graph.model, Signature(signature.inputs, tuple(graph.outputs.values())), labels)


def key_fields(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """What the composed graph depends on: the calls, and the files that they name but for those of names alone.

    A list of labels or characters is looked up in what the graph gives, and read at each load: whoever corrects a label
    need not wait for another engine.
    """

    def written(value: Any, option: str) -> Any:
        if isinstance(value, Path):
            return "read at load" if option in FILES.values() else hashlib.sha256(value.read_bytes()).hexdigest()
        return [written(one, option) for one in value] if isinstance(value, tuple) else value

    return [
        {
            "name": call.name,
            "arguments": [
                written(value, name)
                for value, name in itertools.zip_longest(
                    call.arguments, _positional(call)[: len(call.arguments)], fillvalue=""
                )
            ],
            "options": {name: written(value, name) for name, value in call.options.items()},
        }
        for call in calls
    ]


def read_look_up(values: Mapping[str, Any], calls: Sequence[Call], label: str) -> LookUp:
    """What `LookUp.to_json` wrote, with the names that its file has now.

    Args:
        calls: of the parameter `postprocess`.
        label: for messages.

    Raises:
        ConfigError: the file has not as many names as the model needs.
    """
    rule = LookUp(**{**values, "sources": tuple(values["sources"]), "names": tuple(values["names"])})
    if rule.call is None:
        return rule
    options = Options(calls[rule.call], label, _positional(calls[rule.call]))
    path = options.file(FILES[rule.kind])
    assert path
    if rule.kind == "labels":
        return dataclasses.replace(rule, names=read_labels(path, rule.classes, options))
    return dataclasses.replace(rule, names=characters(read_charset(path, options), rule.blank, rule.classes, options))


def _positional(call: Call) -> tuple[str, ...]:
    """The options of a fragment that may be given by their places; none of one that there is not."""
    return FRAGMENTS[call.name][1] if call.name in FRAGMENTS else ()
