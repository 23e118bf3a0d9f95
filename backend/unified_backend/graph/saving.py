"""Writes an ONNX model, its large tensors in a file beside it where they are many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["LARGE", "MODEL", "save"]

MODEL = "model.onnx"
_LARGE_TENSOR = 256  # values; smaller ones stay in the model
# Bytes of weights from which they lie in a file beside the model, long before one protobuf message would not hold them
# (2^31): what handles the graph then copies less.
LARGE = 2**27


def save(model: onnx.ModelProto, folder: Path, data: Mapping[str, bytes] | None = None, name: str = MODEL) -> None:
    """Write the model and have it checked.

    Args:
        name: of the file.
        data: given, large tensors are written into a file beside the model: the values that are here under a tensor's
            external location, as tf2onnx hands them over, and those in the model.
    """
    import onnx
    from onnx.external_data_helper import set_external_data

    path, beside = folder / name, f"{name}.data"
    if data is not None:
        with (folder / beside).open("wb") as file:
            for tensor in _large(model, data):
                values = data[tensor.external_data[0].value] if tensor.external_data else _bytes(tensor)
                offset = file.tell()
                file.write(values)
                tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
                tensor.raw_data = b""
                set_external_data(tensor, beside, offset=offset, length=len(values))
                tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))


def _large(model: onnx.ModelProto, data: Mapping[str, bytes]) -> list[onnx.TensorProto]:
    """Tensors whose values are in `data`, and initializers that are worth a place outside the model."""
    from onnx import TensorProto
    from onnx.external_data_helper import _get_all_tensors

    handed = [tensor for tensor in _get_all_tensors(model) if tensor.external_data]
    inside = [tensor for tensor in model.graph.initializer if not tensor.external_data]
    return [
        *(tensor for tensor in handed if tensor.external_data[0].value in data),
        *(t for t in inside if t.data_type != TensorProto.STRING and math.prod(t.dims) >= _LARGE_TENSOR),
    ]


def _bytes(tensor: onnx.TensorProto) -> bytes:
    from onnx import numpy_helper

    return tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
