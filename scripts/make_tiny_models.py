"""Write the tiny models that are committed in model_repository/: small enough to read in netron, real enough to check.

Run again after a change here: `.venv/bin/python scripts/make_tiny_models.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save_model

REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"


def xor() -> tuple[list, list, str, str]:
    """Exclusive or of two bits by a network of two hidden units: relu(a + b) - 2 relu(a + b - 1)."""
    weights = {
        "hidden": np.ones((2, 2), np.float32),
        "bias": np.array([0, -1], np.float32),
        "out": np.array([[1], [-2]], np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["bits", "hidden", "bias"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["active"]),
        helper.make_node("MatMul", ["active", "out"], ["xor"]),
    ]
    return nodes, [numpy_helper.from_array(array, name) for name, array in weights.items()], "bits", "xor"


def temperature(scale: float, offset: float) -> tuple[list, list, str, str]:
    """A linear change of scale."""
    constants = {"scale": np.float32(scale), "offset": np.float32(offset)}
    nodes = [
        helper.make_node("Mul", ["celsius", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["converted"]),
    ]
    arrays = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    return nodes, arrays, "celsius", "converted"


def write(path: str, graph: tuple[list, list, str, str], inputs: int) -> None:
    """Save a graph with one input [N, inputs] and one output [N, 1]."""
    nodes, initializers, source, result = graph
    x = helper.make_tensor_value_info(source, TensorProto.FLOAT, ["N", inputs])
    y = helper.make_tensor_value_info(result, TensorProto.FLOAT, ["N", 1])
    model = helper.make_model(
        helper.make_graph(nodes, result, [x], [y], initializers),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="triton-unified-backend",
    )
    target = REPOSITORY / path
    target.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, target)


if __name__ == "__main__":
    write("xor.unified/1/xor", xor(), 2)
    write("temperature/1/celsius_to_fahrenheit.onnx", temperature(1.8, 32), 1)
    write("temperature/2/celsius_to_kelvin.onnx", temperature(1, 273.15), 1)
