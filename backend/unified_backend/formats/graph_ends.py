"""Inputs and outputs of a TensorFlow graph that has no signature: placeholders, and the ends that they reach.

Wrong for loops, and a guess in graphs that were trained from: what the parameters `inputs` and `outputs` say comes
first, and a guess is always said to be one.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from unified_backend.errors import SourceError
from unified_backend.formats.description import choice
from unified_backend.formats.graph_nodes import Graph, Tensor
from unified_backend.tensors import TensorSpec

__all__ = ["Ends", "find_ends"]

# Fed with a constant, and no input: what only training asks for.
_TRAINING = re.compile(
    r"(^|[/_])(is_?training|training|train_?phase|phase_?train|learning_phase|train_?mode|is_?train)"
)
_KEEP = re.compile(r"keep_?prob", re.IGNORECASE)
_DROP = re.compile(r"drop(out)?_?(rate|prob)", re.IGNORECASE)
_TRAINED_SCOPE = re.compile(r"batch_?norm|dropout|(^|/)bn", re.IGNORECASE)
_GRADIENTS = re.compile(r"(^|/)gradients(_\d+)?/")
_LOSS = re.compile(r"loss|cost|accuracy|error|metric|(^|/)(auc|precision|recall|train|optimi[sz]er)", re.IGNORECASE)
# Ops that read data by themselves: what a training pipeline feeds a graph with.
_READERS = re.compile(r"Iterator|Dequeue|^Reader|Queue|^StagePeek|^Unstage|TFRecord|DatasetV\d|Dataset$")
_NOISE = re.compile(r"^(NoOp|Assert|Placeholder|Const|.*Save.*|Restore.*|.*Summary.*|Assign.*|Print.*|.*Apply[A-Z].*)$")
_NO_CONSUMER = re.compile(r"^(Print.*|.*Summary.*)$")
_TRAINS = re.compile(r"^(Resource|Sparse|ResourceSparse)?Apply[A-Z]")
_VARIABLES = frozenset({"Variable", "VariableV2", "VarHandleOp"})
_MOST_PLACEHOLDERS = 1000
_MOMENTS = re.compile(r"(^|/)moments(_\d+)?/")  # a batch's own mean and variance, which batch normalisation trains on
_LOOP_END = frozenset({"Exit", "RefExit"})  # of a loop's counter too, which nobody asked for
_LISTED = 8


@dataclasses.dataclass(frozen=True)
class Ends:
    """What goes in and what comes out.

    Attributes:
        feeds: tensors that get a constant at every run.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    inner: Mapping[str, str]
    feeds: Mapping[str, bool | float]
    notes: tuple[str, ...]


def find_ends(graph: Graph, inputs: Sequence[str], outputs: Sequence[str], label: str, frozen: bool) -> Ends:
    """Find the ends of a graph, or check those that the user named.

    Args:
        inputs: what the parameter says, in tf2onnx's notation; empty to find them.
        outputs: likewise.
        label: the model, for messages.
        frozen: the weights must be in the graph.

    Raises:
        SourceError: there are none, they need more than the inputs, or what was named is not in the graph.
    """
    notes: list[str] = []
    given = [graph.tensor(name, "inputs", label) for name in inputs]
    named = {f"{tensor.node}:{tensor.port}" for tensor in given}
    feeds = {name: value for name, value in _feeds(graph).items() if name not in named}
    candidates = given or [Tensor(node.name, 0) for node in _placeholders(graph) if f"{node.name}:0" not in feeds]
    if len(candidates) > _MOST_PLACEHOLDERS:
        raise SourceError(
            f"{label}: the graph has {len(candidates)} placeholders",
            "so many inputs are no model's",
            'Name those to serve: --inputs, or the parameter "inputs"',
        )
    if outputs:
        ends = [graph.tensor(name, "outputs", label) for name in outputs]
    else:
        ends = _guessed(graph, candidates, label)
        notes.append(
            f"outputs guessed: {_listed([end.public for end in ends])}; the option or parameter `outputs` names others"
        )
    fed = {f"{tensor.node}:{tensor.port}" for tensor in candidates} | set(feeds)
    reached = _needed(graph, ends, fed, label, frozen)
    if not given:
        idle = [tensor.public for tensor in candidates if tensor.node not in reached]
        candidates = [tensor for tensor in candidates if tensor.node in reached]
        if idle:
            notes.append(f"placeholders that no output needs are no inputs: {_listed(idle)}")
    feeds = {name: value for name, value in feeds.items() if name.rpartition(":")[0] in reached}
    notes.extend(f"{name} is fed {str(value).lower()}" for name, value in feeds.items())
    return Ends(
        tuple(graph.spec(tensor) for tensor in candidates),
        tuple(graph.spec(tensor) for tensor in ends),
        {tensor.public: f"{tensor.node}:{tensor.port}" for tensor in (*candidates, *ends)},
        feeds,
        tuple(notes),
    )


def _placeholders(graph: Graph) -> list[Any]:
    """What a caller may feed; one with a scalar default keeps that."""
    found = [node for node in graph.nodes.values() if node.op == "Placeholder"]
    defaults = (node for node in graph.nodes.values() if node.op == "PlaceholderWithDefault")
    return [*found, *(node for node in defaults if graph.spec(Tensor(node.name, 0)).shape)]


def _feeds(graph: Graph) -> dict[str, bool | float]:
    """Scalars that only training asks for, and what serving answers them."""
    feeds: dict[str, bool | float] = {}
    for node in graph.nodes.values():
        if not node.op.startswith("Placeholder"):
            continue
        spec = graph.spec(Tensor(node.name, 0))
        if spec.shape:
            continue
        if spec.dtype == "BOOL" and (_TRAINING.search(node.name.lower()) or _switches_training(graph, node.name)):
            feeds[f"{node.name}:0"] = False
        elif spec.dtype in ("FP32", "FP16", "FP64") and node.op == "Placeholder":
            if _KEEP.search(node.name):
                feeds[f"{node.name}:0"] = 1.0
            elif _DROP.search(node.name):
                feeds[f"{node.name}:0"] = 0.0
    return feeds


def _switches_training(graph: Graph, name: str) -> bool:
    """Whether nothing but batch normalisation and dropout asks for it."""
    users = graph.consumers.get(name, ())
    return bool(users) and all(_TRAINED_SCOPE.search(user) for user in users)


def _guessed(graph: Graph, inputs: Sequence[Tensor], label: str) -> list[Tensor]:
    """The ends that the inputs reach; of a graph that trains, those that need the fewest inputs: no labels."""
    depends = _depends(graph, inputs)
    ends = [name for name in depends if _is_end(graph, name)]
    free = [name for name in ends if not graph.controlled.get(name)] or ends
    free = [name for name in free if graph.nodes[name].op not in _LOOP_END] or free
    if any(_TRAINS.match(node.op) for node in graph.nodes.values()):
        needs = {depends[name] for name in free}
        fewest = [a for a in free if not any(b != depends[a] and depends[a] & b == b for b in needs)]
        free = [name for name in fewest if not (_LOSS.search(name) or _MOMENTS.search(name))]
        if not free:
            raise SourceError(
                f"{label}: the graph trains, and its outputs cannot be told from its losses",
                f"it ends in {_listed(fewest) or 'nothing that a placeholder reaches'}",
                f"Name them: {choice('outputs', f'{_hint(graph, depends)}:0')}",
            )
    if not free:
        readers = sorted({node.op for node in graph.nodes.values() if _READERS.search(node.op)})
        why = "no placeholder reaches an end of the graph" if inputs else "it has no placeholder"
        raise SourceError(
            f"{label}: the graph has no {'outputs' if inputs else 'inputs'}",
            f"{why}{f', and it reads its own data ({_listed(readers)})' if readers else ''}",
            'Name its tensors with --inputs and --outputs, or the parameters of these names: "input:0[1,224,224,3]"',
        )
    return [Tensor(name, port) for name in free for port in graph.ports(name)]


def _depends(graph: Graph, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Node -> bits of the inputs that it needs, of those that need any, in the graph's order."""
    bits: dict[str, int] = {}
    waiting: deque[str] = deque()
    for position, tensor in enumerate(inputs):
        bits[tensor.node] = bits.get(tensor.node, 0) | 1 << position
        waiting.append(tensor.node)
    while waiting:
        name = waiting.popleft()
        for user in graph.consumers.get(name, ()):
            if bits.get(user, 0) | bits[name] != bits.get(user, 0):
                bits[user] = bits.get(user, 0) | bits[name]
                waiting.append(user)
    return {name: bits[name] for name in graph.nodes if name in bits}


def _is_end(graph: Graph, name: str) -> bool:
    if _NOISE.match(graph.nodes[name].op) or _GRADIENTS.search(name):
        return False
    users = graph.consumers.get(name, ())
    return all(_GRADIENTS.search(user) or _NO_CONSUMER.match(graph.nodes[user].op) for user in users)


def _hint(graph: Graph, depends: Mapping[str, int]) -> str:
    """A node that looks like an answer, for the message."""
    likely = [name for name in depends if graph.nodes[name].op in ("Softmax", "Sigmoid", "BiasAdd", "Identity")]
    likely = [name for name in likely if not (_GRADIENTS.search(name) or _LOSS.search(name))]
    return likely[-1] if likely else "name"


def _needed(graph: Graph, outputs: Sequence[Tensor], fed: set[str], label: str, frozen: bool) -> set[str]:
    """The nodes that the outputs need, down to what is fed.

    Raises:
        SourceError: among them is one that nobody feeds.
    """
    seen: set[tuple[str, int]] = set()
    waiting = [(tensor.node, tensor.port) for tensor in outputs]
    while waiting:
        name, port = waiting.pop()
        if (name, port) in seen:
            continue
        seen.add((name, port))
        if f"{name}:{port}" in fed or name not in graph.nodes:
            continue
        node = graph.nodes[name]
        if node.op == "Placeholder":
            raise SourceError(
                f"{label}: the placeholder {name} is not fed",
                f"the outputs {_listed([tensor.public for tensor in outputs])} need it, and it is none of the inputs",
                'Add it to "inputs", or name outputs that do not need it',
            )
        if _READERS.search(node.op):
            raise SourceError(
                f"{label}: the graph reads its own data",
                f"{name} ({node.op}) is a training pipeline's end, which cannot be served",
                "Export the model without its pipeline, or name the tensor that it gives as input: "
                f"{choice('inputs', f'{name}:{port}[-1,...]')}",
            )
        if frozen and node.op in _VARIABLES:
            raise SourceError(
                f"{label}: the graph is not frozen",
                f"{name} ({node.op}) is a variable, and its value is in another file",
                "Freeze the graph, or put the checkpoint (.meta, .index, .data) or the SavedModel here in its place",
            )
        waiting.extend(graph.inputs_of(name))
    return {name for name, _ in seen}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
