"""Fragments for scores of classes: softmax, sigmoid, argmax, topk."""

from __future__ import annotations

from unified_backend.stages.fragments.graph import Graph
from unified_backend.stages.fragments.labels import LookUp, look_up
from unified_backend.stages.fragments.options import Options
from unified_backend.tensors import TensorSpec

__all__ = ["argmax", "sigmoid", "softmax", "topk"]

_FLOATS = ("FP16", "FP32", "FP64", "BF16")


def softmax(graph: Graph, options: Options) -> list[LookUp]:
    """`softmax(axis=-1)`: an output becomes `probabilities`, of the same shape."""
    spec = _floats(options, options.output(list(graph.outputs.values())))
    axis = options.axis(len(spec.shape) if spec.shape else None)
    made = graph.node("Softmax", graph.tensor(spec.name), axis=axis)
    graph.replace([spec.name], {"probabilities": (made, spec.dtype, _shape(options, spec))})
    return []


def sigmoid(graph: Graph, options: Options) -> list[LookUp]:
    """`sigmoid`: an output becomes `probabilities`, of the same shape."""
    spec = _floats(options, options.output(list(graph.outputs.values())))
    made = graph.node("Sigmoid", graph.tensor(spec.name))
    graph.replace([spec.name], {"probabilities": (made, spec.dtype, _shape(options, spec))})
    return []


def argmax(graph: Graph, options: Options) -> list[LookUp]:
    """`argmax(axis=-1, labels=FILE)`: an output becomes `index` INT64, with 1 in place of the axis's size.

    With labels there is an output `label` beside it. Of equal values the first counts.
    """
    spec = options.output(list(graph.outputs.values()))
    shape = _shape(options, spec)
    axis = options.axis(len(shape)) % len(shape)
    labels = options.file("labels", None)
    made = graph.node("ArgMax", graph.tensor(spec.name), axis=axis, keepdims=1)
    shape = (*shape[:axis], 1, *shape[axis + 1 :])
    [index] = graph.replace([spec.name], {"index": (made, "INT64", shape)})
    if labels is None:
        return []
    classes = spec.shape[axis] if spec.shape else None
    return [look_up("label", index, labels, classes, options)]


def topk(graph: Graph, options: Options) -> list[LookUp]:
    """`topk(5, labels=FILE, score=S, axis=-1)`: of an axis the largest k: `scores` and `indices` INT64, largest first.

    With labels there is an output `labels` beside them. Scores below S are 0, with the index -1 and the label "".
    """
    k = options.count("k", 5)
    labels = options.file("labels", None)
    spec = options.output(list(graph.outputs.values()))
    shape = _shape(options, spec)
    axis = options.axis(len(shape)) % len(shape)
    least = options.number("score", None, float("-inf")) if "score" in options.call.options else None
    classes = shape[axis]
    if isinstance(classes, int) and k > classes:
        raise options.wrong(f"k is {k}, and {spec.name} has {classes} classes", f"Write {classes} or less")
    scores, indices = graph.node("TopK", graph.tensor(spec.name), graph.constant([k]), outputs=2, axis=axis)
    if least is not None:
        bound = graph.constant(least, "FP32")
        low = graph.node("Less", scores if spec.dtype == "FP32" else graph.node("Cast", scores, to=1), bound)
        scores = graph.node("Where", low, graph.node("Mul", scores, graph.constant(0, spec.dtype)), scores)
        indices = graph.node("Where", low, graph.constant(-1), indices)
    shape = (*shape[:axis], k, *shape[axis + 1 :])
    _, index = graph.replace([spec.name], {"scores": (scores, spec.dtype, shape), "indices": (indices, "INT64", shape)})
    if labels is None:
        return []
    return [look_up("labels", index, labels, classes, options)]


def _floats(options: Options, spec: TensorSpec) -> TensorSpec:
    if spec.dtype not in _FLOATS:
        raise options.wrong(f"{spec.name} is {spec.dtype}", "Name an output of floating-point numbers with of=NAME")
    return spec


def _shape(options: Options, spec: TensorSpec) -> tuple[int | str | None, ...]:
    if not spec.shape:
        raise options.wrong(f"the rank of {spec.name} is not known", "Export the model with the shapes of its outputs")
    return spec.shape
