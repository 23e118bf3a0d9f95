"""Places for boxes and arrows, from top to bottom: a row for each step, arrows that bend only between rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

__all__ = ["Bundle", "Placed", "Size", "laid_out"]

_BESIDE, _LABEL, _BEND, _MARGIN, _TRUNK = 28.0, 22.0, 40.0, 20.0, 14.0  # pixels
_SWEEPS = 12

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a box, in pixels."""

    width: float
    height: float


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What one box gives to some others, out of one place at its lower side.

    Attributes:
        width: of the text beside its beginning.
    """

    giver: int
    takers: tuple[int, ...]
    width: float = 0.0


@dataclasses.dataclass(frozen=True)
class Placed:
    """A layout.

    Attributes:
        boxes: upper left corners.
        starts: where each bundle leaves its box; its text stands to the right of it.
        lines: SVG path data of each bundle's lines, and whether an arrow ends there.
    """

    width: float
    height: float
    boxes: Sequence[Point]
    starts: Sequence[Point]
    lines: Sequence[Sequence[tuple[str, bool]]]


@dataclasses.dataclass
class _Cell:
    """What stands in a row: a box, or a bundle on its way through."""

    row: int
    left: float  # how far it reaches to both sides of its middle, the texts below it too
    right: float
    box: int | None = None
    x: float = 0.0  # of its middle
    above: list[tuple[int, float]] = dataclasses.field(default_factory=list)  # cell, and how far beside its middle
    below: list[tuple[int, float]] = dataclasses.field(default_factory=list)  # cell, and how far beside one's own


def laid_out(sizes: Sequence[Size], bundles: Sequence[Bundle], late: frozenset[int] = frozenset()) -> Placed:
    """A layout of a graph without cycles.

    Args:
        sizes: of the boxes, each after those that give it something.
        late: boxes that stand directly above the first that takes from them.
    """
    rows = _rows(len(sizes), bundles, late)
    offsets = _offsets(sizes, bundles)
    cells = [_Cell(rows[box], size.width / 2, size.width / 2, box) for box, size in enumerate(sizes)]
    for bundle, offset in zip(bundles, offsets, strict=True):
        cells[bundle.giver].right = max(cells[bundle.giver].right, offset + bundle.width + _TRUNK)
    trunks = [_trunk(bundle, offset, cells) for bundle, offset in zip(bundles, offsets, strict=True)]
    by_row: list[list[int]] = [[] for _ in range(max(rows, default=-1) + 1)]
    for number, cell in enumerate(cells):
        by_row[cell.row].append(number)
    _untangle(by_row, cells)
    _align(by_row, cells)
    left = min((cell.x - cell.left for cell in cells), default=0.0) - _MARGIN
    for cell in cells:
        cell.x -= left
    tops, bottoms = _heights(by_row, cells, sizes)
    width = max((cell.x + cell.right for cell in cells), default=0.0) + _MARGIN
    boxes = [(cells[box].x - size.width / 2, tops[rows[box]]) for box, size in enumerate(sizes)]
    starts = [
        (cells[bundle.giver].x + offset, tops[rows[bundle.giver]] + sizes[bundle.giver].height)
        for bundle, offset in zip(bundles, offsets, strict=True)
    ]
    ends = _ends(bundles, trunks, cells, starts)
    lines = [
        _lines(start, [cells[cell] for cell in trunk], reached, rows[bundle.giver], tops, bottoms)
        for bundle, start, trunk, reached in zip(bundles, starts, trunks, ends, strict=True)
    ]
    return Placed(width, (bottoms[-1] if bottoms else 0.0) + _MARGIN, boxes, starts, lines)


def _rows(count: int, bundles: Sequence[Bundle], late: frozenset[int]) -> list[int]:
    """Of each box: below all that give it something."""
    rows = [0] * count
    takers: list[list[int]] = [[] for _ in range(count)]
    for bundle in bundles:
        takers[bundle.giver] += bundle.takers
    for box in range(count):
        for taker in takers[box]:
            rows[taker] = max(rows[taker], rows[box] + 1)
    for box in late:
        if takers[box]:
            rows[box] = max(0, min(rows[taker] for taker in takers[box]) - 1)
    return rows


def _offsets(sizes: Sequence[Size], bundles: Sequence[Bundle]) -> list[float]:
    """How far beside the middle of its box each bundle begins, so that the texts beside them have room."""
    own: dict[int, list[int]] = {}
    for number, bundle in enumerate(bundles):
        own.setdefault(bundle.giver, []).append(number)
    offsets = [0.0] * len(bundles)
    for numbers in own.values():
        widths = [bundles[number].width + _TRUNK for number in numbers]
        if len(numbers) == 1:
            continue
        x = -sum(widths) / 2 + _TRUNK / 2
        for number, width in zip(numbers, widths, strict=True):
            offsets[number] = x
            x += width
    return offsets


def _trunk(bundle: Bundle, offset: float, cells: list[_Cell]) -> list[int]:
    """The cells by which a bundle passes rows, one for all that take from it; links what it joins."""
    last = max(cells[taker].row for taker in bundle.takers)
    trunk: list[int] = []
    at, beside = bundle.giver, offset
    for row in range(cells[bundle.giver].row + 1, last + 1):
        for taker in bundle.takers:
            if cells[taker].row == row:
                cells[taker].above.append((at, beside))
                cells[at].below.append((taker, beside))
        if row < last:
            cells.append(_Cell(row, _TRUNK / 2, _TRUNK / 2))
            number = len(cells) - 1
            cells[number].above.append((at, beside))
            cells[at].below.append((number, beside))
            trunk.append(number)
            at, beside = number, 0.0
    return trunk


def _untangle(by_row: list[list[int]], cells: Sequence[_Cell]) -> None:
    """Order the cells of each row by where their neighbours stand, down and up."""
    place = {number: float(index) for row in by_row for index, number in enumerate(row)}

    def sort(row: list[int], above: bool) -> None:
        def mean(number: int) -> float:
            near = cells[number].above if above else cells[number].below
            return sum(place[other] for other, _ in near) / len(near) if near else place[number]

        row.sort(key=mean)
        place.update((number, float(index)) for index, number in enumerate(row))

    for _ in range(_SWEEPS):
        for row in by_row[1:]:
            sort(row, above=True)
        for row in reversed(by_row[:-1]):
            sort(row, above=False)
    for row in by_row[1:]:
        sort(row, above=True)


def _align(by_row: Sequence[Sequence[int]], cells: Sequence[_Cell]) -> None:
    """Bring each cell under and over its neighbours, as far as those beside it leave room."""
    for row in by_row:
        _spread(row, cells, [0.0] * len(row))
    for sweep in range(2 * _SWEEPS):
        down = sweep % 2 == 0
        for row in by_row if down else reversed(by_row):
            wanted = []
            for number in row:
                cell = cells[number]
                near = cell.above if down else cell.below
                # Below, a bundle begins `beside` one's own middle; above, it comes from beside the middle of another.
                points = [cells[other].x + beside if down else cells[other].x - beside for other, beside in near]
                wanted.append(sum(points) / len(points) if points else cell.x)
            _spread(row, cells, wanted)


def _spread(row: Sequence[int], cells: Sequence[_Cell], wanted: Sequence[float]) -> None:
    """Put cells as near as possible to where they are wanted, in their order and without overlap.

    Least squares under order is isotonic regression, which pools neighbours that want to be where the other is.
    """
    room, at = [], 0.0
    for index, number in enumerate(row):
        if index:
            at += cells[row[index - 1]].right + cells[number].left + _BESIDE
        room.append(at)
    pools: list[tuple[float, int]] = []  # mean, members
    for index in range(len(row)):
        mean, members = wanted[index] - room[index], 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean, members = (mean * members + other * count) / (members + count), members + count
        pools.append((mean, members))
    index = 0
    for mean, members in pools:
        for _ in range(members):
            cells[row[index]].x = mean + room[index]
            index += 1


def _heights(
    by_row: Sequence[Sequence[int]], cells: Sequence[_Cell], sizes: Sequence[Size]
) -> tuple[list[float], list[float]]:
    """Upper and lower side of each row."""
    tops, bottoms, y = [], [], _MARGIN
    for row in by_row:
        tops.append(y)
        y += max((sizes[box].height for number in row if (box := cells[number].box) is not None), default=0.0)
        bottoms.append(y)
        y += _LABEL + _BEND
    return tops, bottoms


def _ends(
    bundles: Sequence[Bundle], trunks: Sequence[Sequence[int]], cells: Sequence[_Cell], starts: Sequence[Point]
) -> list[dict[int, list[float]]]:
    """Of each bundle: row -> where its arrows end at the upper sides of boxes, in the order in which they come."""
    arriving: dict[int, list[tuple[float, int]]] = {}
    for number, (bundle, trunk) in enumerate(zip(bundles, trunks, strict=True)):
        by_row = {cells[cell].row: cells[cell].x for cell in trunk}
        for taker in bundle.takers:
            arriving.setdefault(taker, []).append((by_row.get(cells[taker].row - 1, starts[number][0]), number))
    ends: list[dict[int, list[float]]] = [{} for _ in bundles]
    for taker, coming in arriving.items():
        step = min(40.0, cells[taker].left * 1.6 / len(coming))
        for index, (_, number) in enumerate(sorted(coming)):
            x = cells[taker].x + (index - (len(coming) - 1) / 2) * step
            ends[number].setdefault(cells[taker].row, []).append(x)
    return ends


def _lines(
    starts: Point,
    trunk: Sequence[_Cell],
    takers: Mapping[int, list[float]],
    first: int,
    tops: Sequence[float],
    bottoms: Sequence[float],
) -> list[tuple[str, bool]]:
    """A bundle's lines: straight down beside its text and through rows, bent between them.

    Args:
        takers: row -> where arrows end there.
        first: row of the giver.
    """
    x, y = starts
    bend = bottoms[first] + _LABEL
    lines = [(f"M{x:.1f} {y:.1f} V{bend:.1f}", False)]
    for row in range(first + 1, max(takers) + 1):
        top = tops[row]
        middle = (bend + top) / 2
        for end in takers.get(row, ()):
            lines.append(
                (f"M{x:.1f} {bend:.1f} C{x:.1f} {middle:.1f} {end:.1f} {middle:.1f} {end:.1f} {top:.1f}", True)
            )
        if row - first - 1 < len(trunk):
            to = trunk[row - first - 1].x
            below = bottoms[row] + _LABEL
            curve = f"C{x:.1f} {middle:.1f} {to:.1f} {middle:.1f} {to:.1f} {top:.1f}"
            lines.append((f"M{x:.1f} {bend:.1f} {curve} V{below:.1f}", False))
            x, bend = to, below
    return lines
