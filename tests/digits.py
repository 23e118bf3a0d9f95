"""scikit-learn's handwritten digits (1,797 labelled images of 8 x 8), and a small network trained on them."""

from __future__ import annotations

import dataclasses
import gzip
from typing import Any

import numpy as np
import real_models
from onnx import TensorProto, helper, numpy_helper
from unified_backend.tensors import Array

__all__ = ["Digits", "digits", "network"]

_FILTERS = 24, 64
_HELD_OUT = 600


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images [N, 1, 8, 8] of FP32 in [0, 1], and their labels [N]: those trained on, and those held out."""

    images: Array
    labels: Array
    test_images: Array
    test_labels: Array


def digits() -> Digits:
    """The set, shuffled by a seed and split."""
    file = real_models.path("scikit-learn", "datasets/data/digits.csv.gz")
    with gzip.open(file) as text:
        rows = np.loadtxt(text, delimiter=",", dtype=np.float32)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    images, labels = rows[:, :-1].reshape(-1, 1, 8, 8) / 16, rows[:, -1].astype(int)
    return Digits(images[_HELD_OUT:], labels[_HELD_OUT:], images[:_HELD_OUT], labels[:_HELD_OUT])


def network(data: Digits) -> bytes:
    """An ONNX model `image` [N, 1, 8, 8] -> `scores` [N, 10].

    Two convolutions with seeded filters, and a matrix that is fitted to the labels by least squares, which is all the
    training that these digits need.
    """
    generator = np.random.default_rng(1)
    first = generator.standard_normal((_FILTERS[0], 1, 3, 3), np.float32) / 3
    second = generator.standard_normal((_FILTERS[1], _FILTERS[0], 3, 3), np.float32) / 12
    features = _features(data.images, first, second)
    wanted = np.eye(10, dtype=np.float32)[data.labels] - 0.1
    matrix = np.linalg.solve(features.T @ features + 3.0 * np.eye(features.shape[1]), features.T @ wanted)
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], "conv_first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu_first"),
        helper.make_node("MaxPool", ["b"], ["c"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["c", "second"], ["d"], "conv_second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["d"], ["e"], "relu_second"),
        helper.make_node("Flatten", ["e"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "matrix"], ["g"], "matrix_product"),
        helper.make_node("Add", ["g", "bias"], ["scores"], "bias_added"),
    ]
    weights = {"first": first, "second": second, "matrix": matrix, "bias": np.full(10, 0.1)}
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _features(images: Array, first: Array, second: Array) -> Any:
    """What the matrix gets, in NumPy."""
    made = np.maximum(_convolved(images, first), 0)
    pooled = made.reshape(*made.shape[:2], 4, 2, 4, 2).max((3, 5))
    return np.maximum(_convolved(pooled, second), 0).reshape(len(images), -1)


def _convolved(images: Array, filters: Array) -> Any:
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return np.einsum("nchwij,fcij->nfhw", windows, filters, optimize=True).astype(np.float32)
