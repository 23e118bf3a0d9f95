"""Fragments for detectors: non-maximum suppression, and the heads of YOLO and SSD before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unified_backend.stages.fragments.graph import Graph, Shape
from unified_backend.stages.fragments.labels import LookUp, look_up
from unified_backend.stages.fragments.options import Options

__all__ = ["nms", "ssd", "yolo"]

_FORMATS = ("xyxy", "yxyx", "cxcywh", "xywh")
_OPEN = 2**31 - 1  # end of a slice that goes to the end


def nms(graph: Graph, options: Options) -> list[LookUp]:
    """`nms(boxes=NAME, scores=NAME, iou=0.5, score=0.25, max=100, format=xyxy, per_class=true, multi_label=true,
    labels=FILE)`.

    Takes boxes `[N, M, 4]` and scores `[N, M, C]` or `[N, C, M]` (`scores_last=true|false`; the axis that is M where
    that can be told); gives what `_detections` does.
    """
    outputs = list(graph.outputs.values())
    boxes, scores = options.output(outputs, "boxes"), options.output(outputs, "scores")
    form = options.choice("format", "xyxy", _FORMATS)
    for spec in (boxes, scores):
        if not spec.shape or len(spec.shape) != 3:
            raise options.wrong(f"{spec.name} is {spec.dims}", "Name boxes [N, M, 4] and scores [N, M, C]")
    assert boxes.shape and scores.shape
    last = options.switch("scores_last", boxes.shape[1] != scores.shape[2] or scores.shape[1] == boxes.shape[1])
    classes = scores.shape[2] if last else scores.shape[1]
    by_class = graph.tensor(scores.name)
    by_class = graph.node("Transpose", by_class, perm=[0, 2, 1]) if last else by_class
    corners = _corners(graph, _as_float(graph, graph.tensor(boxes.name), boxes.dtype), form)
    by_class = _as_float(graph, by_class, scores.dtype)
    return _detections(graph, options, [boxes.name, scores.name], corners, by_class, boxes.shape[0], classes)


def yolo(graph: Graph, options: Options) -> list[LookUp]:
    """`yolo(version=8, classes=C, of=NAME, ...)`, with the options of `nms`: the head of YOLOv8 or YOLOv5.

    Version 8: `[N, 4 + C, M]`, boxes as centre, width and height, scores of classes below them (Ultralytics, Detect
    head of an export). Version 5: `[N, M, 5 + C]`, whose fifth value, of the box, is multiplied into the classes'.
    """
    version = options.choice("version", 8, (5, 8))
    spec = options.output(list(graph.outputs.values()))
    if not spec.shape or len(spec.shape) != 3:
        raise options.wrong(f"{spec.name} is {spec.dims}", "The head has [N, 4 + C, M] (8) or [N, M, 5 + C] (5)")
    head = _as_float(graph, graph.tensor(spec.name), spec.dtype)
    before = 4 if version == 8 else 5
    width = spec.shape[1 if version == 8 else 2]
    if isinstance(width, int) and width <= before:
        raise options.wrong(f"{spec.name} is {spec.dims}", f"Version {version} has {before} values before the classes")
    if version == 8:
        head = graph.node("Transpose", head, perm=[0, 2, 1])
    classes: Any = width - before if isinstance(width, int) else None
    if "classes" in options.call.options:  # behind them a segmentation head has coefficients of masks
        number = options.count("classes")
        if classes is not None and number > classes:
            raise options.wrong(f"classes is {number}, and {spec.name} has {classes}", f"Write {classes} or less")
        classes = number
    scores = _sliced(graph, head, before, _OPEN if classes is None else before + classes)
    if version == 5:
        scores = graph.node("Mul", scores, _sliced(graph, head, 4, 5))
    corners = _corners(graph, _sliced(graph, head, 0, 4), "cxcywh")
    by_class = graph.node("Transpose", scores, perm=[0, 2, 1])
    return _detections(graph, options, [spec.name], corners, by_class, spec.shape[0], classes, several=False)


def ssd(graph: Graph, options: Options) -> list[LookUp]:
    """`ssd(anchors=FILE.npy, boxes=NAME, scores=NAME, variances=(0.1, 0.1, 0.2, 0.2), background=none|0, ...)`.

    Anchors `[M, 4]` have centre x, centre y, width and height. A box is, as in SSD (Liu et al., 2016, section 2.2, and
    the variances of its implementation): centre = anchor's centre + offset * variance * anchor's size; size = anchor's
    size * exp(offset * variance). With `background=0` the first class is left out. Options of `nms` besides.
    """
    outputs = list(graph.outputs.values())
    boxes, scores = options.output(outputs, "boxes"), options.output(outputs, "scores")
    path = options.file("anchors")
    variances = options.numbers("variances", (0.1, 0.1, 0.2, 0.2), 4)
    background = options.choice("background", "none", ("none", 0))
    if not boxes.shape or not scores.shape or len(boxes.shape) != 3 or len(scores.shape) != 3:
        raise options.wrong(f"{boxes.name} is {boxes.dims}, {scores.name} is {scores.dims}", "They have 3 dimensions")
    try:
        anchors = np.load(str(path), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise options.wrong(f"{path} cannot be read: {error}", "Save it with numpy.save, [M, 4]") from None
    number = boxes.shape[1]
    if anchors.ndim != 2 or anchors.shape[1] != 4 or (isinstance(number, int) and number != len(anchors)):
        raise options.wrong(f"anchors are {list(anchors.shape)}, and {boxes.name} is {boxes.dims}", "They are [M, 4]")
    given = graph.node(
        "Mul", _as_float(graph, graph.tensor(boxes.name), boxes.dtype), graph.constant(variances, np.float32)
    )
    centres = graph.constant(anchors[None, :, :2], np.float32)
    sizes = graph.constant(anchors[None, :, 2:], np.float32)
    centre = graph.node("Add", graph.node("Mul", _sliced(graph, given, 0, 2), sizes), centres)
    size = graph.node("Mul", graph.node("Exp", _sliced(graph, given, 2, 4)), sizes)
    corners = _corners(graph, graph.node("Concat", centre, size, axis=-1), "cxcywh")
    kept = _as_float(graph, graph.tensor(scores.name), scores.dtype)
    classes = scores.shape[2]
    if background == 0:
        kept = _sliced(graph, kept, 1, _OPEN)
        classes = classes - 1 if isinstance(classes, int) else None
    by_class = graph.node("Transpose", kept, perm=[0, 2, 1])
    names = [boxes.name, scores.name]
    return _detections(graph, options, names, corners, by_class, boxes.shape[0], classes)


def _detections(
    graph: Graph,
    options: Options,
    consumed: Sequence[str],
    corners: str,
    scores: str,
    batch: int | str | None,
    classes: Any,
    several: bool = True,
) -> list[LookUp]:
    """`boxes [N, max, 4]` (x1, y1, x2, y2), `scores [N, max]`, `classes [N, max]` INT64 and `count [N, 1]` INT64.

    These are the boxes that stay, FP32: the largest scores first, and zeros of class -1 behind the last, so that
    samples can share a batch.

    Args:
        corners: `[N, M, 4]` FP32: half precision has no whole numbers beyond 2048.
        scores: `[N, C, M]` FP32.
        several: the default of `multi_label`: a box may stay with several classes, else with its best alone.
    """
    iou, least = options.number("iou", 0.5, 0, 1), options.number("score", 0.25, 0, 1)
    most, per_class = options.count("max", 100), options.switch("per_class", True)
    labels, several = options.file("labels", None), options.switch("multi_label", several)
    judged, points = scores, corners
    kind = ""
    if per_class and not several:
        best_class = graph.node("ArgMax", scores, axis=1, keepdims=1)
        size = graph.node("Squeeze", _sliced_shape(graph, scores, 1, 2), graph.constant([0]))
        order = graph.node("Range", graph.constant(0), size, graph.constant(1))
        own = graph.node("Equal", graph.node("Unsqueeze", order, graph.constant([0, 2])), best_class)
        judged = graph.node("Where", own, scores, graph.constant(-1.0, np.float32))
    if not per_class:  # every box is of its best class, and overlaps boxes of all
        judged, kind = graph.node("TopK", judged, graph.constant([1]), outputs=2, axis=1)
    thresholds = (graph.constant([iou], np.float32), graph.constant([least], np.float32))
    chosen = graph.node("NonMaxSuppression", points, judged, graph.constant([most]), *thresholds)
    # [N, C, M]: a score where the box stays, -1 elsewhere; the largest of all of them are the answer.
    ones = graph.node("ConstantOfShape", _sliced_shape(graph, chosen, 0, 1), value=_value(1.0))
    zeros = graph.node("ConstantOfShape", graph.node("Shape", judged), value=_value(0.0))
    kept = graph.node("ScatterND", zeros, chosen, ones)
    stays = graph.node("Greater", kept, graph.constant(0.5, np.float32))
    ranked = graph.node("Where", stays, judged, graph.constant(-1.0, np.float32))
    flat = graph.node("Flatten", ranked, axis=1)
    # With `most` rows more there are always enough to choose from.
    rows = _sliced_shape(graph, flat, 0, 1)
    padding = graph.node(
        "ConstantOfShape", graph.node("Concat", rows, graph.constant([most]), axis=0), value=_value(-1.0)
    )
    best, places = graph.node(
        "TopK", graph.node("Concat", flat, padding, axis=1), graph.constant([most]), outputs=2, axis=-1
    )
    there = graph.node("GreaterOrEqual", best, graph.constant(0.0, np.float32))
    number = _sliced_shape(graph, points, 1, 2)  # [1]: M
    safe = graph.node("Where", there, places, graph.constant(0))
    at = graph.node("Mod", safe, number)
    if per_class:
        found = graph.node("Div", safe, number)
    else:
        found = graph.node("GatherElements", graph.node("Squeeze", kind, graph.constant([1])), at, axis=1)
    kinds = graph.node("Where", there, found, graph.constant(-1))
    repeated = graph.node("Expand", graph.node("Unsqueeze", at, graph.constant([2])), graph.constant([1, 1, 4]))
    boxes = graph.node("GatherElements", points, repeated, axis=1)
    mask = graph.node("Unsqueeze", there, graph.constant([2]))
    boxes = graph.node("Where", mask, boxes, graph.constant(0.0, np.float32))
    marks = graph.node("Where", there, best, graph.constant(0.0, np.float32))
    count = graph.node("ReduceSum", graph.node("Cast", there, to=7), graph.constant([1]), keepdims=1)
    made: dict[str, tuple[str, str, Shape]] = {
        "boxes": (boxes, "FP32", (batch, most, 4)),
        "scores": (marks, "FP32", (batch, most)),
        "classes": (kinds, "INT64", (batch, most)),
        "count": (count, "INT64", (batch, 1)),
    }
    names = graph.replace(consumed, made)
    if labels is None:
        return []
    return [look_up("labels", names[2], labels, classes, options)]


def _corners(graph: Graph, boxes: str, form: str) -> str:
    """Boxes as x1, y1, x2, y2, FP32."""
    if form == "xyxy":
        return boxes
    first, second = _sliced(graph, boxes, 0, 2), _sliced(graph, boxes, 2, 4)
    if form == "yxyx":
        return str(graph.node("Gather", boxes, graph.constant([1, 0, 3, 2]), axis=2))
    if form == "cxcywh":
        half = graph.node("Mul", second, graph.constant(0.5, np.float32))
        return str(graph.node("Concat", graph.node("Sub", first, half), graph.node("Add", first, half), axis=2))
    return str(graph.node("Concat", first, graph.node("Add", first, second), axis=2))


def _as_float(graph: Graph, tensor: str, dtype: str) -> str:
    return tensor if dtype == "FP32" else str(graph.node("Cast", tensor, to=1))


def _sliced(graph: Graph, tensor: str, begin: int, end: int) -> str:
    """Along the last of three axes."""
    return str(graph.node("Slice", tensor, *(graph.constant([one]) for one in (begin, end, 2))))


def _sliced_shape(graph: Graph, tensor: str, begin: int, end: int) -> str:
    shape = graph.node("Shape", tensor)
    return str(graph.node("Slice", shape, *(graph.constant([one]) for one in (begin, end, 0))))


def _value(number: float) -> Any:
    from onnx import helper

    return helper.make_tensor("value", 1, [1], [number])
