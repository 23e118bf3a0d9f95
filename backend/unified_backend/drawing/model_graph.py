"""The graph of an ONNX model as a picture: a box for a node or a group of nodes, with what flows between them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from unified_backend.drawing.folding import Group, common_scope, folded
from unified_backend.drawing.layout import Bundle, Placed, Size, laid_out
from unified_backend.drawing.onnx_graph import Graph, bodies_of, read_graph
from unified_backend.drawing.svg import document, fitted, text, width_of

if TYPE_CHECKING:
    import onnx

__all__ = ["Drawn", "draw"]

_MOST = 60  # boxes
_ENDS = 8  # boxes for inputs, and as many for outputs; more of them share one
_NARROW, _WIDE, _PAD, _LINE = 150.0, 330.0, 12.0, 17.0  # pixels
_LABEL_WIDTH = 190.0


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
    graph = read_graph(path)
    room = max(1, _MOST - min(len(graph.inputs), _ENDS) - min(len(graph.outputs), _ENDS))
    folding = _Folding.of(graph, folded(graph.takers(), graph.scopes, room))
    boxes = folding.boxes(graph)
    bundles, labels = _bundles(folding.flows(graph), graph.types, folding.group_boxes)
    room_below: Counter[int] = Counter()
    for bundle in bundles:
        room_below[bundle.giver] += int(bundle.width) + 20
    sizes = [box.size(room_below[number]) for number, box in enumerate(boxes)]
    placed = laid_out(sizes, bundles, frozenset(range(len(folding.inputs))))
    count, groups = len(graph.nodes), len(folding.groups)
    title = f"The graph of {name}: {count} nodes without constants, in {groups} boxes"
    parts = [*_lines(placed), *_labels(placed, labels), *_rectangles(boxes, sizes, placed)]
    return Drawn(document(title, placed.width, placed.height, parts), count, groups)


@dataclasses.dataclass(frozen=True)
class _Folding:
    """What shares a box: inputs, nodes, outputs. The boxes stand in this order, each after what it takes from."""

    inputs: Sequence[Sequence[str]]
    groups: Sequence[Group]
    outputs: Sequence[Sequence[str]]
    group_of: Mapping[int, int]

    @staticmethod
    def of(graph: Graph, groups: Sequence[Group]) -> _Folding:
        group_of = {node: number for number, (_, members) in enumerate(groups) for node in members}
        into: dict[str, set[int]] = {name: set() for name in graph.inputs}
        for number, names in enumerate(graph.taken):
            for name in names & into.keys():
                into[name].add(group_of[number])
        out = {name: {group_of.get(graph.givers.get(name, -1), -1)} for name in graph.outputs}
        return _Folding(_together(graph.inputs, into), groups, _together(graph.outputs, out), group_of)

    @property
    def group_boxes(self) -> range:
        """Numbers of the boxes of nodes."""
        return range(len(self.inputs), len(self.inputs) + len(self.groups))

    def boxes(self, graph: Graph) -> list[_Box]:
        several = [scope for scope, members in self.groups if len(members) > 1]
        common = len(reduce(common_scope, several)) if len(several) > 1 else 0  # of every title: of no use in them
        return [
            *(_end_box(names, graph.types, "input") for names in self.inputs),
            *(_group_box(group, graph.nodes, common) for group in self.groups),
            *(_end_box(names, graph.types, "output") for names in self.outputs),
        ]

    def flows(self, graph: Graph) -> dict[tuple[int, int], list[str]]:
        """(box that gives, box that takes) -> names of the tensors."""
        first = self.group_boxes.start
        giver_of = {name: box for box, names in enumerate(self.inputs) for name in names}
        giver_of |= {name: first + self.group_of[node] for name, node in graph.givers.items()}
        wanted = [(first + self.group_of[number], sorted(names)) for number, names in enumerate(graph.taken)]
        wanted += [(self.group_boxes.stop + number, list(names)) for number, names in enumerate(self.outputs)]
        flows: dict[tuple[int, int], list[str]] = {}
        for taker, names in wanted:
            for name in names:
                giver = giver_of.get(name)
                if giver is not None and giver < taker and name not in flows.get((giver, taker), ()):
                    flows.setdefault((giver, taker), []).append(name)
        return flows


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
    inner = [node.op_type for member in members for body in bodies_of(nodes[member]) for node in body.node]
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
