"""The graph of an ONNX model as a picture: a box for a node or a group of nodes, with what flows between them."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from unified_backend.conversion.interface import graphs_of
from unified_backend.drawing.folding import Group, Scope, common_scope, folded
from unified_backend.drawing.layout import Bundle, Placed, Size, laid_out
from unified_backend.drawing.svg import document, fitted, text, width_of
from unified_backend.formats.onnx import read_model
from unified_backend.tensors import data_type

if TYPE_CHECKING:
    import onnx

__all__ = ["Drawn", "draw"]

_MOST = 60  # boxes
_ENDS = 8  # boxes for inputs, and as many for outputs; more of them share one
_NARROW, _WIDE, _PAD, _LINE = 150.0, 330.0, 12.0, 17.0  # pixels
_LABEL_WIDTH = 190.0
_SYMBOL = 10  # letters of a dimension's name
_SMALL = 1024  # elements of an initializer whose values shapes may depend on
_SCOPES = "pkg.torch.onnx.name_scopes"  # of a node that torch.onnx.export(dynamo=True) wrote


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A picture, and how much of the model each box holds."""

    svg: str
    nodes: int
    boxes: int


@dataclasses.dataclass(frozen=True)
class _Box:
    kind: str  # class of its rectangle
    lines: tuple[str, ...]  # the first is the title
    hint: str

    def size(self, room: float) -> Size:
        """As wide as its texts, or as what begins at its lower side."""
        wide = max(map(width_of, self.lines)) + 2 * _PAD
        return Size(max(_NARROW, room, min(_WIDE, wide)), len(self.lines) * _LINE + 12)


def draw(path: Path, name: str) -> Drawn:
    """The picture of an ONNX file.

    Args:
        name: what the picture calls the model.

    Raises:
        SourceError: the file is damaged.
    """
    model = read_model(path)
    types = _types(model)
    graph = model.graph
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    givers = {output: number for number, node in enumerate(nodes) for output in node.output if output}
    taken = [_taken(node) for node in nodes]
    takers: list[list[int]] = [[] for _ in nodes]
    for number, names in enumerate(taken):
        for giver in sorted({givers[name] for name in names if name in givers}):
            takers[giver].append(number)
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {tensor.values.name for tensor in graph.sparse_initializer}
    inputs = [value.name for value in graph.input if value.name not in constants]
    outputs = [value.name for value in graph.output]
    room = max(1, _MOST - min(len(inputs), _ENDS) - min(len(outputs), _ENDS))
    groups = folded(takers, [_scope(node) for node in nodes], room)
    group_of = {node: number for number, (_, members) in enumerate(groups) for node in members}

    several = [scope for scope, members in groups if len(members) > 1]
    common = len(reduce(common_scope, several)) if len(several) > 1 else 0  # of every title, and so of no use in them

    # Boxes in an order in which each comes after what it takes from: inputs, groups, outputs.
    first = _together(
        inputs, {name: {group_of[n] for n, names in enumerate(taken) if name in names} for name in inputs}
    )
    last = _together(outputs, {name: {group_of.get(givers.get(name, -1), -1)} for name in outputs})
    boxes = [
        *(_end_box(names, types, "input") for names in first),
        *(_group_box(group, nodes, common) for group in groups),
        *(_end_box(names, types, "output") for names in last),
    ]
    box_of_input = {name: number for number, names in enumerate(first) for name in names}
    shift = len(first)

    flows: dict[tuple[int, int], list[str]] = {}

    def flow(name: str, taker: int) -> None:
        giver = shift + group_of[givers[name]] if name in givers else box_of_input.get(name)
        if giver is not None and giver != taker and name not in flows.setdefault((giver, taker), []):
            flows[giver, taker].append(name)

    for number, names in enumerate(taken):
        for name in names:
            flow(name, shift + group_of[number])
    for number, names_of_box in enumerate(last):
        for name in names_of_box:
            flow(name, shift + len(groups) + number)
    bundles, labels = _bundles(flows, types, range(shift, shift + len(groups)))
    widths: Counter[int] = Counter()
    for bundle in bundles:
        widths[bundle.giver] += int(bundle.width) + 20
    sizes = [box.size(widths[number]) for number, box in enumerate(boxes)]
    placed = laid_out(sizes, bundles, frozenset(range(shift)))
    title = f"The graph of {name}: {len(nodes)} nodes without constants, in {len(groups)} boxes"
    parts = [*_lines(placed), *_labels(placed, labels), *_rectangles(boxes, sizes, placed)]
    return Drawn(document(title, placed.width, placed.height, parts), len(nodes), len(groups))


def _types(model: onnx.ModelProto) -> dict[str, str]:
    """Type and shape of every tensor that the file or ONNX's shape inference tells: `FP32 [N, 64, 56, 56]`."""
    import onnx

    for tensor in model.graph.initializer:
        size = 1
        for dim in tensor.dims:
            size *= dim
        if size > _SMALL:
            tensor.ClearField("raw_data")  # its shape is enough, and models have gigabytes of these
            tensor.ClearField("float_data")
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    # Of operators that ONNX does not know, or a graph that it takes for wrong, what the file tells is shown.
    with contextlib.suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        values += onnx.shape_inference.infer_shapes(model).graph.value_info
    return {value.name: label for value in values if (label := _type(value))}


def _type(value: onnx.ValueInfoProto) -> str:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return (kind or "").removesuffix("_type")
    tensor = value.type.tensor_type
    row = data_type(tensor.elem_type)
    name = row.triton if row else "?"
    if not tensor.HasField("shape"):
        return name
    dims = (str(dim.dim_value) if dim.HasField("dim_value") else _symbol(dim.dim_param) for dim in tensor.shape.dim)
    return f"{name} [{', '.join(dims)}]"


def _symbol(name: str) -> str:
    """A dimension's name, if a person gave it: exporters number theirs (`unk__21`, `p2o.DynamicDimension.0`)."""
    return name if name and len(name) <= _SYMBOL and not name.startswith("unk__") else "?"


def _taken(node: onnx.NodeProto) -> set[str]:
    """What a node takes, and its branches and bodies out of the graph around them."""
    names = {name for name in node.input if name}
    for graph in _inner(node):
        for inside in graphs_of(graph):
            names.update(name for other in inside.node for name in other.input)
            names.update(value.name for value in inside.output)
    return names


def _inner(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [
        graph
        for attribute in node.attribute
        for graph in ((attribute.g,) if attribute.HasField("g") else tuple(attribute.graphs))
    ]


def _scope(node: onnx.NodeProto) -> Scope:
    """Where in the network a node is: what exporters write into its name, or beside it."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            try:
                names = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                break
            if isinstance(names, list):
                return tuple(str(name) for name in names[:-1] if name)
    parts = [part for part in node.name.split("/") if part]
    return tuple(parts[:-1])


def _together(names: Sequence[str], near: Mapping[str, set[int]]) -> list[list[str]]:
    """Inputs or outputs in boxes: each alone, or those of the same groups together where they are many."""
    if len(names) <= _ENDS:
        return [[name] for name in names]
    found: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        found.setdefault(tuple(sorted(near[name])), []).append(name)
    boxes = list(found.values())
    rest = [name for box in boxes[_ENDS - 1 :] for name in box]
    return boxes if len(boxes) <= _ENDS else [*boxes[: _ENDS - 1], rest]


def _end_box(names: Sequence[str], types: Mapping[str, str], side: str) -> _Box:
    hint = "\n".join(f"{side} {name} {types.get(name, '')}" for name in names[:40])
    if len(names) == 1:
        return _Box("end", (names[0], types.get(names[0], side)), hint)
    return _Box("end", (f"{len(names)} {side}s", f"{names[0]}, ..."), hint)


def _group_box(group: Group, nodes: Sequence[onnx.NodeProto], common: int) -> _Box:
    scope, members = group
    kinds = [nodes[member].op_type for member in members]
    counted = _counted(kinds)
    inner = [other.op_type for m in members for graph in _inner(nodes[m]) for g in graphs_of(graph) for other in g.node]
    bodies = (f"inside {len(inner)}: {_counted(inner)}",) if inner else ()
    if len(members) == 1:
        name = nodes[members[0]].name
        return _Box("node", (kinds[0], *((name,) if name else ()), *bodies), f"{kinds[0]} {name}")
    chain = kinds[0] if kinds[0] == kinds[-1] else f"{kinds[0]} … {kinds[-1]}"
    title = "/".join(scope[common:] or scope) or chain
    hint = f"{title}\n{len(members)} nodes: {', '.join(f'{k} {n}' for k, n in Counter(kinds).most_common())}"
    return _Box("model", (title, f"{len(members)} nodes", counted, *bodies), hint)


def _counted(kinds: Iterable[str]) -> str:
    return ", ".join(f"{kind} {count}" if count > 1 else kind for kind, count in Counter(kinds).most_common())


def _bundles(
    flows: Mapping[tuple[int, int], Sequence[str]], types: Mapping[str, str], labelled: range
) -> tuple[list[Bundle], list[tuple[str, str]]]:
    """What leaves each box, by what it is: the same tensors to several boxes are one line that divides.

    Returns:
        the bundles, and of each its label and the names of its tensors.
    """
    same: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for (giver, taker), names in flows.items():
        same.setdefault((giver, tuple(sorted(names))), []).append(taker)
    bundles, labels = [], []
    for (giver, names), takers in same.items():
        label = ""
        if giver in labelled:
            label = types.get(names[0], "") if len(names) == 1 else f"{len(names)} tensors"
            label = fitted(label, _LABEL_WIDTH)
        hint = "\n".join(f"{name} {types.get(name, '')}" for name in names[:40])
        bundles.append(Bundle(giver, tuple(sorted(takers)), width_of(label)))
        labels.append((label, hint))
    return bundles, labels


def _lines(placed: Placed) -> Iterable[str]:
    for lines in placed.lines:
        for path, arrow in lines:
            yield f'<path d="{path}"/>' if arrow else f'<path class="trunk" d="{path}"/>'


def _labels(placed: Placed, labels: Sequence[tuple[str, str]]) -> Iterable[str]:
    for (x, y), (label, hint) in zip(placed.starts, labels, strict=True):
        if label:
            place = f'x="{x + 6:.1f}" y="{y + 15:.1f}"'
            yield f'<text class="tensor" {place}><title>{_hint(hint)}</title>{text(label)}</text>'


def _rectangles(boxes: Sequence[_Box], sizes: Sequence[Size], placed: Placed) -> Iterable[str]:
    for box, size, (x, y) in zip(boxes, sizes, placed.boxes, strict=True):
        style = "" if box.kind == "node" else f' class="{box.kind}"'
        middle = x + size.width / 2
        yield f"<g><title>{_hint(box.hint)}</title>"
        yield f'<rect{style} x="{x:.1f}" y="{y:.1f}" width="{size.width:.1f}" height="{size.height:.1f}"/>'
        for number, line in enumerate(box.lines):
            shown = fitted(line, size.width - 2 * _PAD + 4, keep_end=number == 0 or box.kind == "node")
            yield (
                f'<text class="{"tensor" if number else "title"}" text-anchor="middle" x="{middle:.1f}" '
                f'y="{y + 19 + number * _LINE:.1f}">{text(shown)}</text>'
            )
        yield "</g>"


def _hint(content: str) -> str:
    return "\n".join(map(text, content.split("\n")))
