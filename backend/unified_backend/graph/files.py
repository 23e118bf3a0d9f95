"""ONNX models with all their weights, read from and written to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["MODEL", "read_whole", "write_whole"]

MODEL = "model.onnx"
_DATA = "model.onnx.data"
# Bytes of weights from which they lie in a file beside the model: one protobuf message holds 2^31.
_LARGE = 2**27


def read_whole(path: Path) -> onnx.ModelProto:
    """The model with its external data in it."""
    import onnx

    return onnx.load(str(path))


def write_whole(model: onnx.ModelProto, path: Path) -> None:
    """Write a model that holds its weights, large ones into a file beside it; the model is not used afterwards."""
    import onnx

    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _LARGE
    data = _DATA if path.name == MODEL else f"{path.name}.data"
    onnx.save_model(model, str(path), save_as_external_data=large, location=data, size_threshold=1024)
