"""Rewrites a TensorFlow Lite file for its readers: the wanted graph first, names that differ, no sparse tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.errors import ConversionError
from unified_backend.tensors import Array

__all__ = ["Prepared", "dense", "prepared"]

# Fields of operators' options that hold the number of another graph.
_GRAPHS = (
    *("condSubgraphIndex", "bodySubgraphIndex", "thenSubgraphIndex", "elseSubgraphIndex"),
    *("initSubgraphIndex", "subgraph", "decompositionSubgraphIndex"),
)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A file ready for what reads the first graph of one.

    Attributes:
        names: an input's or output's own name -> its name in this file.
        moved: whether another graph than the first of the source is now the first.
    """

    path: Path
    names: Mapping[str, str]
    moved: bool
    notes: tuple[str, ...] = ()


def prepared(path: Path, signature: str | None, folder: Path) -> Prepared:
    """A file in `folder` in which the signature's graph is the first; the source if it is so already.

    tf2onnx, LiteRT's interpreter and OpenVINO take the first graph. tf2onnx follows tensors by their names (files exist
    with one name on several), and has no DENSIFY: sparse constants are written out.

    Args:
        signature: key of the signature that is served; None for the file's first graph.

    Raises:
        ConversionError: the file has no such signature.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    wanted = _graph_of(model, signature)
    numbers = [wanted, *(number for number in _reached(model, wanted) if number != wanted)]
    changed = numbers != list(range(len(model.subgraphs)))
    if changed:
        _keep(model, numbers)
    expanded = _expand(model, schema)
    names, renamed = _distinct(model)
    notes = (f"{expanded} sparse tensors written out as dense",) if expanded else ()
    if not (changed or expanded or renamed):
        return Prepared(path, names, moved=False)
    builder = flatbuffers.Builder(path.stat().st_size)
    builder.Finish(model.Pack(builder), b"TFL3")
    target = folder / "prepared.tflite"
    target.write_bytes(builder.Output())
    return Prepared(target, names, wanted != 0, notes)


def dense(values: Array, shape: Sequence[int], sparsity: Any) -> Array:
    """A sparse constant written out.

    The format is a tree: one level for each dimension, and below them one for each dimension of the blocks, in
    `traversalOrder`. A dense level has all its indices under each branch of the level above, a sparse one lists them.

    Args:
        values: of the leaves, in order.
        shape: of the tensor.
        sparsity: a `SparsityParametersT` of the schema.
    """
    order = [int(axis) for axis in sparsity.traversalOrder]
    blocks = [] if sparsity.blockMap is None else [int(axis) for axis in sparsity.blockMap]
    paths = np.zeros((1, 0), np.int64)
    for level in sparsity.dimMetadata:
        if level.arraySegments is None:
            branches, found = np.repeat(paths, level.denseSize, axis=0), np.tile(np.arange(level.denseSize), len(paths))
        else:
            branches = np.repeat(paths, np.diff(np.asarray(level.arraySegments.values, np.int64)), axis=0)
            found = np.asarray(level.arrayIndices.values, np.int64)
        paths = np.column_stack([branches, found])
    sizes = [1] * len(shape)
    for axis, level in zip(order, sparsity.dimMetadata, strict=True):
        if axis >= len(shape):
            sizes[blocks[axis - len(shape)]] = level.denseSize
    places = [np.zeros(len(paths), np.int64) for _ in shape]
    for column, axis in enumerate(order):
        if axis < len(shape):
            places[axis] += paths[:, column] * sizes[axis]
        else:
            places[blocks[axis - len(shape)]] += paths[:, column]
    whole = np.zeros(shape, values.dtype)
    whole[tuple(places)] = values
    return whole


def _graph_of(model: Any, signature: str | None) -> int:
    if signature is None:
        return 0
    keys = {row.signatureKey.decode(): int(row.subgraphIndex) for row in model.signatureDefs or ()}
    if signature not in keys:
        raise ConversionError(
            f'the file has no signature "{signature}"',
            f"it has {', '.join(keys) or 'none'}",
            'Set parameter "signature" to one of them',
        )
    return keys[signature]


def _reached(model: Any, start: int) -> list[int]:
    """The graphs that a graph runs, in the file's order."""
    found, waiting = set(), [start]
    while waiting:
        number = waiting.pop()
        if number in found or not 0 <= number < len(model.subgraphs):
            continue
        found.add(number)
        for operator in model.subgraphs[number].operators or ():
            waiting.extend(
                value for field in _GRAPHS if isinstance(value := getattr(operator.builtinOptions, field, None), int)
            )
    return sorted(found)


def _keep(model: Any, numbers: Sequence[int]) -> None:
    """Keep these graphs, in this order."""
    new = {old: place for place, old in enumerate(numbers)}
    model.subgraphs = [model.subgraphs[number] for number in numbers]
    model.signatureDefs = []
    for operator in (each for graph in model.subgraphs for each in graph.operators or ()):
        for field in _GRAPHS:
            if isinstance(number := getattr(operator.builtinOptions, field, None), int) and number in new:
                setattr(operator.builtinOptions, field, new[number])


def _expand(model: Any, schema: Any) -> int:
    """Write out sparse constants, and take away the operators that would do it at run time."""
    types = {
        schema.TensorType.FLOAT32: np.float32,
        schema.TensorType.FLOAT16: np.float16,
        schema.TensorType.INT8: np.int8,
        schema.TensorType.UINT8: np.uint8,
        schema.TensorType.INT16: np.int16,
        schema.TensorType.INT32: np.int32,
    }
    codes = {number: code.builtinCode for number, code in enumerate(model.operatorCodes)}
    count = 0
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.sparsity is None or tensor.type not in types:
                continue
            values = np.frombuffer(bytes(model.buffers[tensor.buffer].data), types[tensor.type])
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(dense(values, tensor.shape, tensor.sparsity).tobytes(), np.uint8)
            tensor.buffer, tensor.sparsity = len(model.buffers), None
            model.buffers.append(buffer)
            count += 1
        gone = [each for each in graph.operators or () if codes[each.opcodeIndex] == schema.BuiltinOperator.DENSIFY]
        source = {each.outputs[0]: each.inputs[0] for each in gone}
        graph.operators = [each for each in graph.operators or () if each not in gone]
        for operator in graph.operators if gone else ():
            operator.inputs = [source.get(number, number) for number in operator.inputs]
    return count


def _distinct(model: Any) -> tuple[dict[str, str], bool]:
    """Give each tensor of the first graph a name of its own; inputs and outputs keep theirs."""
    graph = model.subgraphs[0]
    ends = [*graph.inputs, *graph.outputs]
    taken: set[str] = set()
    names: dict[str, str] = {}
    renamed = False
    for number in dict.fromkeys([*(int(end) for end in ends), *range(len(graph.tensors))]):
        own = (graph.tensors[number].name or b"").decode("utf-8", "replace")
        name = own or f"tensor_{number}"
        while name in taken:
            name = f"{name}_{number}"
        taken.add(name)
        names.setdefault(own, name)
        if name != own:
            graph.tensors[number].name = name.encode()
            renamed = True
    return names, renamed
