"""Small networks with the same weights twice: as ncnn's two files, and as ONNX, whose answers are the right ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["image_net", "sequence_net"]

_FLOATS = bytes(4)  # ncnn's mark of weights that are float32


def image_net(folder: Path, stated: bool = True) -> tuple[Path, bytes]:
    """Convolution, depthwise convolution, pooling, a dense layer and a softmax on images of 3 x 15 x 13.

    Args:
        stated: the file tells the size of its input.

    Returns:
        the `.param` file, its `.bin` beside it, and the ONNX model, float [N, 3, 15, 13] -> [N, 5].
    """
    chance = np.random.default_rng(4)
    first, second, dense = (
        (chance.standard_normal(shape) / 4).astype(np.float32) for shape in ((8, 3, 3, 3), (8, 1, 3, 3), (5, 8 * 8 * 7))
    )
    biases = [chance.standard_normal(size).astype(np.float32) for size in (8, 8, 5)]
    size = " 0=13 1=15 2=3" if stated else ""
    text = f"""7767517
5 5
Input in0 0 1 in0{size}
Convolution conv 1 1 in0 a 0=8 1=3 4=1 5=1 6=216 9=1
ConvolutionDepthWise deep 1 1 a b 0=8 1=3 3=2 4=1 5=1 6=72 7=8 9=1
InnerProduct fc 1 1 b c 0=5 1=1 2=2240
Softmax prob 1 1 c out0 0=0 1=1
"""
    weights = b"".join(
        _FLOATS + array.tobytes() + bias.tobytes() for array, bias in zip((first, second, dense), biases, strict=True)
    )
    nodes = [
        helper.make_node("Conv", ["in0", "w0", "b0"], ["a0"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a0"], ["a"]),
        helper.make_node("Conv", ["a", "w1", "b1"], ["d0"], pads=[1, 1, 1, 1], strides=[2, 2], group=8),
        helper.make_node("Relu", ["d0"], ["d"]),
        helper.make_node("Flatten", ["d"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["c"], transB=1),
        helper.make_node("Softmax", ["c"], ["out0"], axis=1),
    ]
    constants = {f"w{i}": array for i, array in enumerate((first, second, dense))}
    constants |= {f"b{i}": array for i, array in enumerate(biases)}
    return _written(folder, text, weights), _onnx(nodes, constants, ["N", 3, 15, 13], ["N", 5])


def sequence_net(folder: Path, both_ways: bool = False) -> tuple[Path, bytes]:
    """An LSTM of 6 units on 7 steps of 4 values: float [1, 7, 4] -> [1, 7, 6], or 12 in two directions."""
    chance = np.random.default_rng(5)
    ways = 2 if both_ways else 1
    inputs, hidden = (chance.standard_normal((ways, 24, size)).astype(np.float32) for size in (4, 6))
    bias = chance.standard_normal((ways, 24)).astype(np.float32)
    text = f"""7767517
2 2
Input in0 0 1 in0 0=4 1=7
LSTM lstm 1 1 in0 out0 0=6 1={ways * 96} 2={2 if both_ways else 0}
"""
    weights = b"".join(_FLOATS + array.tobytes() for array in (inputs, bias, hidden))
    order = np.r_[0:6, 12:18, 6:12, 18:24]  # of gates: i f o g in ncnn, i o f g in ONNX
    nodes = [
        helper.make_node("Transpose", ["in0"], ["t"], perm=[1, 0, 2]),
        helper.make_node(
            "LSTM",
            ["t", "w", "r", "b"],
            ["y"],
            hidden_size=6,
            direction="bidirectional" if both_ways else "forward",
        ),
        helper.make_node("Transpose", ["y"], ["z"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["z", "s"], ["out0"]),
    ]
    constants = {
        "w": inputs[:, order],
        "r": hidden[:, order],
        "b": np.concatenate([bias[:, order], np.zeros_like(bias)], axis=1),
        "s": np.array([0, 7, 6 * ways], np.int64),
    }
    return _written(folder, text, weights), _onnx(nodes, constants, ["N", 7, 4], ["N", 7, 6 * ways])


def _written(folder: Path, text: str, weights: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.bin").write_bytes(weights)
    (folder / "net.param").write_text(text)
    return folder / "net.param"


def _onnx(nodes: list, constants: dict, given: list, answer: list) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("in0", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("out0", TensorProto.FLOAT, answer)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()
