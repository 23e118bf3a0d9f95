"""The detector's probability map -> lines of text as quadrilaterals, in reading order.

Differentiable binarisation (Liao et al., https://arxiv.org/abs/1911.08947): the network marks the core of each line,
which is grown by area x RATIO / perimeter. Constants are those of rapidocr-onnxruntime 1.4.4 (Apache-2.0).
"""

from __future__ import annotations

import math

import numpy as np
from unified_backend.stages.user import stage

IN_TEXT, BOX_SCORE, RATIO = 0.3, 0.5, 1.6
SHORTEST_CORE, SHORTEST_LINE, SHORTEST_SIDE = 3, 5, 3  # in pixels: of the map, of the map, of the photograph
MOST = 1000
SAME_ROW = 10  # pixels between the tops of two boxes that are read from left to right
ARC = 0.25  # how far a grown corner may be from round, in pixels (Clipper's arc tolerance)


@stage(
    inputs={"map": "FP32[1,1,-1,-1]", "image": "UINT8[1,-1,-1,3]"},
    outputs={"boxes": "FP32[-1,4,2]", "scores": "FP32[-1]"},
)
def boxes(map, image):
    """Corners [M, 4, 2] from the upper left clockwise, x and y in pixels of the image, and scores [M]."""
    probabilities = map[0, 0]
    size = np.array([image.shape[2], image.shape[1]])
    scale = size / probabilities.shape[::-1]
    mask = probabilities > IN_TEXT
    mask[1:] |= mask[:-1].copy()  # a pixel of growth down and right, as rapidocr's dilation by 2 x 2
    mask[:, 1:] |= mask[:, :-1].copy()
    found = []
    for outline in outlines(mask)[:MOST]:
        core, shortest = smallest_rectangle(outline)
        if shortest < SHORTEST_CORE or (score := mean_within(probabilities, core)) < BOX_SCORE:
            continue
        line, shortest = smallest_rectangle(grown(core))
        if shortest < SHORTEST_LINE:
            continue
        corners = clockwise(np.trunc(np.clip(np.round(line * scale), 0, size)))
        corners = np.clip(corners, 0, size - 1)
        across, down = np.linalg.norm(corners[0] - corners[1]), np.linalg.norm(corners[0] - corners[3])
        if min(int(across), int(down)) > SHORTEST_SIDE and is_convex(corners):
            found.append((corners, score))
    order = reading_order([corners for corners, _ in found])
    return (
        np.array([found[i][0] for i in order], np.float32).reshape(-1, 4, 2),
        np.array([found[i][1] for i in order], np.float32),
    )


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Of each region of touching pixels, corners count, the ends [P, 2] of its runs in each row, x and y."""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8))
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]  # the first pixel behind each run
    # Runs of the next row that touch are neighbours in the order of all runs, so that two searches find them.
    pitch = mask.shape[1] + 2
    first = np.searchsorted(rows * pitch + ends, (rows + 1) * pitch + starts)
    behind = np.searchsorted(rows * pitch + starts, (rows + 1) * pitch + ends, "right")
    region = list(range(len(rows)))

    def root(run: int) -> int:
        while region[run] != run:
            region[run] = region[region[run]]
            run = region[run]
        return run

    for run in range(len(rows)):
        for below in range(first[run], behind[run]):
            one, other = sorted((root(run), root(below)))
            region[other] = one
    roots = np.array([root(run) for run in range(len(rows))], int)
    order = np.argsort(roots, kind="stable")
    points = np.stack([np.stack([starts, rows], 1), np.stack([ends - 1, rows], 1)], 1)[order]
    groups = np.split(points, np.flatnonzero(np.diff(roots[order])) + 1) if len(rows) else []
    return [group.reshape(-1, 2) for group in groups]


def hull(points: np.ndarray) -> np.ndarray:
    """The convex hull of points [P, 2], in turn (Andrew's monotone chain)."""
    ordered = sorted({(float(x), float(y)) for x, y in points})
    halves = []
    for run in (ordered, ordered[::-1]):
        chain: list[tuple[float, float]] = []
        for x, y in run:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        halves += chain[:-1]
    return np.array(halves or ordered)


def smallest_rectangle(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Corners [4, 2] of the smallest rectangle around points, clockwise from the upper left, and its shorter side."""
    corners = hull(points)
    edges = np.roll(corners, -1, 0) - corners
    edges = edges[np.any(edges, 1)]
    if not len(edges):
        return np.repeat(corners[:1], 4, 0), 0.0
    # One side lies along an edge of the hull (Freeman and Shapira 1975).
    along = edges / np.linalg.norm(edges, axis=1, keepdims=True)
    beside = np.stack([-along[:, 1], along[:, 0]], 1)
    u, v = corners @ along.T, corners @ beside.T
    sides = np.stack([np.ptp(u, 0), np.ptp(v, 0)])
    best = int(sides.prod(0).argmin())
    low, high = (u.min(0)[best], v.min(0)[best]), (u.max(0)[best], v.max(0)[best])
    rectangle = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
    return clockwise(rectangle @ np.stack([along[best], beside[best]])), float(sides[:, best].min())


def clockwise(corners: np.ndarray) -> np.ndarray:
    """Four corners from the upper left: the two on the left by height, the two on the right by height."""
    across = corners[np.argsort(corners[:, 0], kind="stable")]
    left, right = (side[np.argsort(side[:, 1], kind="stable")] for side in (across[:2], across[2:]))
    return np.stack([left[0], right[0], right[1], left[1]])


def is_convex(corners: np.ndarray) -> bool:
    """Whether four corners, clockwise, still enclose something: cut at the rim, three may lie on a line."""
    sides = np.roll(corners, -1, 0) - corners
    after = np.roll(sides, -1, 0)
    return bool(np.all(sides[:, 0] * after[:, 1] - sides[:, 1] * after[:, 0] > 0))


def mean_within(probabilities: np.ndarray, corners: np.ndarray) -> float:
    """The mean probability in a quadrilateral, its rim included."""
    highest = np.array(probabilities.shape[::-1]) - 1
    low = np.clip(np.floor(corners.min(0)), 0, highest).astype(int)
    high = np.clip(np.ceil(corners.max(0)), 0, highest).astype(int)
    x, y = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
    whole = np.trunc(corners - low) + low
    inside = np.ones(x.shape, bool)
    for (ax, ay), (bx, by) in zip(whole, np.roll(whole, -1, 0), strict=True):
        inside &= (bx - ax) * (y - ay) - (by - ay) * (x - ax) >= -0.5 * math.hypot(bx - ax, by - ay)
    window = probabilities[low[1] : high[1] + 1, low[0] : high[0] + 1]
    return float(window[inside].mean()) if inside.any() else 0.0


def grown(corners: np.ndarray) -> np.ndarray:
    """Points [P, 2] around a quadrilateral at the distance area x RATIO / perimeter, on whole pixels."""
    sides = np.roll(corners, -1, 0) - corners
    lengths = np.linalg.norm(sides, axis=1)
    area = abs(np.sum(corners[:, 0] * np.roll(corners[:, 1], -1) - corners[:, 1] * np.roll(corners[:, 0], -1))) / 2
    distance = area * RATIO / lengths.sum()
    angles = np.arctan2(-sides[:, 0], sides[:, 1])  # of the side's outward normal, y downwards
    steps = max(2, math.ceil(math.pi / math.acos(1 - min(ARC / distance, 1)) / 2) + 1)
    points = []
    for corner, before, after in zip(np.trunc(corners), np.roll(angles, 1), angles, strict=True):
        turn = (after - before) % (2 * math.pi)
        angle = before + turn * np.linspace(0, 1, steps)
        points.append(np.round(corner + distance * np.stack([np.cos(angle), np.sin(angle)], 1)))
    return np.concatenate(points)


def reading_order(corners: list[np.ndarray]) -> list[int]:
    """Indices from top to bottom; boxes of one row from left to right."""
    order = sorted(range(len(corners)), key=lambda i: (corners[i][0][1], corners[i][0][0]))
    for end in range(1, len(order)):
        for i in range(end, 0, -1):
            here, before = corners[order[i]][0], corners[order[i - 1]][0]
            if abs(here[1] - before[1]) >= SAME_ROW or here[0] >= before[0]:
                break
            order[i - 1], order[i] = order[i], order[i - 1]
    return order
