"""The public side of an exported model: names, order and shapes of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from unified_backend.tensors import TensorSpec, data_type

if TYPE_CHECKING:
    import onnx

__all__ = ["graphs_of", "publish"]


def publish(
    model: onnx.ModelProto,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    ranks: Mapping[str, int],
) -> None:
    """Give the graph's inputs and outputs their public names and order.

    An input that the exporter dropped, because nothing depends on it, is listed all the same: clients send it. An
    output without a shape gets the rank seen in a run, which ONNX's checker and Triton's configuration want.

    Args:
        inputs: name in the exported graph -> what it is to the public, in order.
        outputs: likewise.
        ranks: of outputs, by public name.
    """
    from onnx import helper

    graph = model.graph
    _rename(model, {inner: spec.name for inner, spec in (*inputs.items(), *outputs.items()) if inner != spec.name})
    there = {value.name: value for value in graph.input}
    made = []
    for spec in inputs.values():
        row = data_type(spec.dtype)
        assert row is not None
        missing = helper.make_tensor_value_info(spec.name, row.onnx, _open(spec.shape, spec.name))
        made.append(there.pop(spec.name, missing))
    made.extend(there.values())
    del graph.input[:]
    graph.input.extend(made)
    by_name = {value.name: value for value in graph.output}
    made = [by_name[spec.name] for spec in outputs.values()]
    for value in made:
        tensor = value.type.tensor_type
        if not tensor.HasField("shape") and value.name in ranks:
            shape = _open((None,) * ranks[value.name], value.name)
            value.CopyFrom(helper.make_tensor_value_info(value.name, tensor.elem_type, shape))
    del graph.output[:]
    graph.output.extend(made)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the graphs in its nodes, bodies of loops and branches, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_of(attribute.g)
            for inner in attribute.graphs:
                yield from graphs_of(inner)


def _rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename tensors in all graphs; one that has a wanted name already makes room for it."""
    graphs = list(graphs_of(model.graph))
    taken = {name for graph in graphs for node in graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for graph in graphs for value in (*graph.input, *graph.output, *graph.initializer)}
    new = dict(names)
    for name in set(names.values()) & taken - set(names):
        free = f"{name}_inner"
        while free in taken or free in names.values():
            free += "_"
        new[name] = free
    for graph in graphs:
        for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
            value.name = new.get(value.name, value.name)
        for node in graph.node:
            for side in (node.input, node.output):
                side[:] = [new.get(name, name) for name in side]


def _open(shape: Sequence[int | str | None] | None, name: str) -> list[int | str] | None:
    """The shape as ONNX writes it: each open dimension under a name of its own."""
    if shape is None:
        return None
    return [f"{name}_{axis}" if size is None else size for axis, size in enumerate(shape)]
