"""The models of the benchmarks: made here with seeded weights, kept in the user's cache directory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import platformdirs
from onnx import TensorProto, helper, numpy_helper

__all__ = ["LARGE", "MODELS", "Model", "model_file"]

# Part of the cached files' names: raise it when a graph below changes.
REVISION = 1
OPSET = 17
IR_VERSION = 8


@dataclass(frozen=True)
class Model:
    """One model of the grid.

    Attributes:
        build: makes the ONNX model; the first dimension of every tensor is the batch.
        element: ONNX element type of the input; every output is FLOAT.
        input_shape, output_shape: without the batch dimension.
        max_batch_size: the same for every backend.
        patience: how many times longer than the shortest a measurement of it lasts, so that each holds enough requests.
    """

    name: str
    build: Callable[[], onnx.ModelProto]
    element: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    max_batch_size: int
    patience: float = 1.0

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.element))

    @property
    def output_bytes(self) -> int:
        """Size in bytes of the output of a batch of one."""
        return 4 * math.prod(self.output_shape)


def model_file(model: Model) -> Path:
    """The ONNX file of `model`, made on first use; the same bytes on every machine."""
    folder = platformdirs.user_cache_path("triton-unified-benchmarks")
    path = folder / f"{model.name}-{REVISION}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{path.name}.{os.getpid()}"
        onnx.save(model.build(), aside)
        aside.replace(path)
    return path


class _Graph:
    """Nodes and seeded weights of a graph under construction."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append one node and name its only output."""
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, values: np.ndarray[Any, Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, *shape: int, scale: float) -> str:
        return self.constant((self.random.standard_normal(shape) * scale).astype(np.float32))

    def conv(self, x: str, channels: int, filters: int, kernel: int, stride: int = 1) -> str:
        """A convolution with its batch normalisation already folded into a bias, as exporters write it."""
        scale = math.sqrt(1.0 / (channels * kernel * kernel))
        kernels = self.weight(filters, channels, kernel, kernel, scale=scale)
        bias = self.weight(filters, scale=0.01)
        return self.add("Conv", x, kernels, bias, strides=[stride] * 2, pads=[kernel // 2] * 4)

    def linear(self, x: str, width: int, outputs: int) -> str:
        product = self.add("MatMul", x, self.weight(width, outputs, scale=1 / math.sqrt(width)))
        return self.add("Add", product, self.weight(outputs, scale=0.01))

    def norm(self, x: str, width: int) -> str:
        one, zero = self.constant(np.ones(width, np.float32)), self.constant(np.zeros(width, np.float32))
        return self.add("LayerNormalization", x, one, zero, axis=-1)

    def finish(
        self, result: str, element: int, input_shape: Sequence[int], output_shape: Sequence[int]
    ) -> onnx.ModelProto:
        """The model from `input` to `output`, which carries what the node output `result` computed."""
        self.nodes.append(helper.make_node("Identity", [result], ["output"]))
        graph = helper.make_graph(
            self.nodes,
            "benchmark",
            [helper.make_tensor_value_info("input", element, ["N", *input_shape])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", *output_shape])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model


def _mlp() -> onnx.ModelProto:
    graph = _Graph()
    hidden = graph.add("Relu", graph.linear("input", 16, 32))
    return graph.finish(graph.linear(hidden, 32, 4), TensorProto.FLOAT, [16], [4])


def _thin() -> onnx.ModelProto:
    """Looks at a few rows of a 0.6 MB input, about 15 us of compute: what is measured is the way there."""
    graph = _Graph()
    first, last, axis = (graph.constant(np.array([value])) for value in (96, 128, 2))
    rows = graph.add("Slice", "input", first, last, axis)
    means = graph.add("ReduceMean", rows, axes=[2, 3], keepdims=0)
    return graph.finish(graph.linear(means, 3, 8), TensorProto.FLOAT, [3, 224, 224], [8])


def _transformer(layers: int = 3, width: int = 256, heads: int = 4, length: int = 128) -> onnx.ModelProto:
    graph = _Graph()
    words = graph.add("Gather", graph.weight(1000, width, scale=1.0), "input")
    x = graph.add("Add", words, graph.weight(length, width, scale=0.1))
    split = graph.constant(np.array([0, length, heads, width // heads]))
    join = graph.constant(np.array([0, length, width]))
    half, one = (graph.constant(np.array(value, np.float32)) for value in (0.5, 1.0))
    root_half, scale = (graph.constant(np.array(v, np.float32)) for v in (math.sqrt(0.5), math.sqrt(heads / width)))

    def per_head(x: str, order: list[int]) -> str:
        return graph.add("Transpose", graph.add("Reshape", graph.linear(x, width, width), split), perm=order)

    for _ in range(layers):
        query, key, value = (per_head(x, order) for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
        scores = graph.add("Softmax", graph.add("Mul", graph.add("MatMul", query, key), scale), axis=-1)
        mixed = graph.add("Transpose", graph.add("MatMul", scores, value), perm=[0, 2, 1, 3])
        attended = graph.linear(graph.add("Reshape", mixed, join), width, width)
        x = graph.norm(graph.add("Add", x, attended), width)
        wide = graph.linear(x, width, 4 * width)
        gate = graph.add("Add", graph.add("Erf", graph.add("Mul", wide, root_half)), one)
        gelu = graph.add("Mul", graph.add("Mul", wide, gate), half)
        x = graph.norm(graph.add("Add", x, graph.linear(gelu, 4 * width, width)), width)
    pooled = graph.add("ReduceMean", x, axes=[1], keepdims=0)
    return graph.finish(graph.linear(pooled, width, 2), TensorProto.INT64, [length], [2])


def _resnet50() -> onnx.ModelProto:
    """ResNet-50 v1.5 (stride in the 3x3 convolution), layer for layer; only the weights are made up."""
    graph = _Graph()
    x = graph.add("Relu", graph.conv("input", 3, 64, 7, stride=2))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            shortcut = x if block else graph.conv(x, channels, 4 * width, 1, stride)
            x = graph.add("Relu", graph.conv(x, channels, width, 1))
            x = graph.add("Relu", graph.conv(x, width, width, 3, stride))
            x = graph.add("Relu", graph.add("Add", graph.conv(x, width, 4 * width, 1), shortcut))
            channels = 4 * width
    flat = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    return graph.finish(graph.linear(flat, channels, 1000), TensorProto.FLOAT, [3, 224, 224], [1000])


def _vgg19() -> onnx.ModelProto:
    """VGG-19, 575 MB of weights: what loading costs when there is much to read."""
    graph = _Graph()
    x, channels = "input", 3
    for filters, layers in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(layers):
            x, channels = graph.add("Relu", graph.conv(x, channels, filters, 3)), filters
        x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = graph.add("Relu", graph.linear(graph.add("Flatten", x), 512 * 7 * 7, 4096))
    x = graph.add("Relu", graph.linear(x, 4096, 4096))
    return graph.finish(graph.linear(x, 4096, 1000), TensorProto.FLOAT, [3, 224, 224], [1000])


def _identity() -> onnx.ModelProto:
    return _Graph().finish("input", TensorProto.FLOAT, [3, 1024, 1024], [3, 1024, 1024])


# A measurement of a slow model counts whole batches: small ones, and a longer look, keep the rounding below 5 %.
_ALL = (
    Model("mlp", _mlp, TensorProto.FLOAT, (16,), (4,), 16),
    Model("thin", _thin, TensorProto.FLOAT, (3, 224, 224), (8,), 16),
    Model("transformer", _transformer, TensorProto.INT64, (128,), (2,), 4, patience=4.0),
    Model("resnet50", _resnet50, TensorProto.FLOAT, (3, 224, 224), (1000,), 4, patience=9.0),
    Model("identity", _identity, TensorProto.FLOAT, (3, 1024, 1024), (3, 1024, 1024), 4, patience=6.0),
)
MODELS = {model.name: model for model in _ALL}
LARGE = Model("vgg19", _vgg19, TensorProto.FLOAT, (3, 224, 224), (1000,), 4)
