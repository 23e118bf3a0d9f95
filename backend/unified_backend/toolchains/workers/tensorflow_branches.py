"""Takes away the branches of a GraphDef that a constant predicate never lets run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

__all__ = ["without_dead_branches"]

_SWITCHES = ("Switch", "RefSwitch")
_IFS = {"If": "StatefulPartitionedCall", "StatelessIf": "PartitionedCall"}
_MERGES = ("Merge", "RefMerge")


def without_dead_branches(graph: Any) -> None:
    """Remove, in place, what runs only in training where `is_training` is fed False.

    A conditional of TensorFlow 1 is a Switch, whose one output is dead in each run, and a Merge, which takes what is
    not dead; newer ones are an If. tf2onnx reads whole conditionals, but has TensorFlow fold constants first: that
    eats half of one with a constant predicate, and leaves a Merge that tf2onnx has no operator for.
    """
    nodes = {node.name: node for node in graph.node}
    taken = {}
    for node in graph.node:
        if node.op in _SWITCHES and (side := _value(node.input[1], nodes)) is not None:
            taken[node.name] = side
        elif node.op in _IFS and (side := _value(node.input[0], nodes)) is not None:
            _call(node, side, graph)
    if not taken:
        return
    dead = _dead(graph, taken)
    used = {name for node in graph.node for name in node.input}
    kept = []
    for node in graph.node:
        if f"{node.name}:0" in dead and node.op not in _SWITCHES:
            continue
        if node.op in _MERGES and f"{node.name}:1" not in used:
            live = [name for name in _data(node) if _tensor(name) not in dead]
            if len(live) == 1 and len(_data(node)) > 1:
                node.op = "Identity"
                del node.attr["N"], node.input[:]
                node.input.append(live[0])
        if node.name in taken:
            node.op = "Identity"
            del node.input[1]
        kept.append(node)
    for node in kept:
        for index, name in enumerate(node.input):
            owner = _tensor(name).partition(":")[0]
            if owner in taken and not name.startswith("^"):
                node.input[index] = owner
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)


def _call(node: Any, side: bool, graph: Any) -> None:
    """Make an If a call of its one branch that runs.

    Under a name of its own: TensorFlow inlines the call as `NAME/NODE`, and around an If such nodes are there already.
    """
    own, node.name = node.name, f"{node.name}_branch"
    for reader in graph.node:
        for index, name in enumerate(reader.input):
            if name.removeprefix("^").partition(":")[0] == own:
                reader.input[index] = name.replace(own, node.name, 1)
    function = node.attr["then_branch" if side else "else_branch"].func.name
    node.op = _IFS[node.op]
    del node.input[0], node.attr["Tcond"], node.attr["then_branch"], node.attr["else_branch"]
    node.attr.pop("output_shapes", None)
    node.attr.pop("_lower_using_switch_merge", None)
    node.attr["f"].func.name = function


def _value(name: str, nodes: dict[str, Any]) -> bool | None:
    """A predicate's value, if the graph itself says it."""
    node = nodes.get(name.partition(":")[0])
    if node is None:
        return None
    match node.op:
        case "Const":
            import tensorflow as tf

            value = tf.make_ndarray(node.attr["value"].tensor)
            return bool(value) if value.ndim == 0 else None
        case "Identity":
            return _value(node.input[0], nodes)
        case "LogicalNot":
            value = _value(node.input[0], nodes)
            return None if value is None else not value
    return None


def _dead(graph: Any, taken: dict[str, bool]) -> set[str]:
    """The tensors, and as `NAME:0` the operators, that no run reaches."""
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name if name.startswith("^") else _tensor(name)].append(node)
    dead: set[str] = set()
    waiting = [f"{name}:{0 if side else 1}" for name, side in taken.items()]
    nodes = {node.name: node for node in graph.node}
    while waiting:
        tensor = waiting.pop()
        if tensor in dead:
            continue
        dead.add(tensor)
        for node in readers[tensor]:
            if node.op in _MERGES:
                # What comes round a loop is dead if what enters it is.
                entering = [name for name in _data(node) if nodes[name.partition(":")[0]].op != "NextIteration"]
                if not all(_tensor(name) in dead for name in entering):
                    continue
            waiting.extend([f"{node.name}:0", f"^{node.name}"])
            waiting.extend(other for other in readers if other.startswith(f"{node.name}:"))
    return dead


def _data(node: Any) -> list[str]:
    return [name for name in node.input if not name.startswith("^")]


def _tensor(name: str) -> str:
    return name if ":" in name or name.startswith("^") else f"{name}:0"
