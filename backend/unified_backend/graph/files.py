"""ONNX models with all their weights, read from and written to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unified_backend.graph.saving import LARGE, MODEL, save

if TYPE_CHECKING:
    import onnx

__all__ = ["MODEL", "read_whole", "write_whole"]


def read_whole(path: Path) -> onnx.ModelProto:
    """The model with its external data in it."""
    import onnx

    return onnx.load(str(path))


def write_whole(model: onnx.ModelProto, path: Path) -> None:
    """Write a model that holds its weights, large ones into a file beside it; the model is not used afterwards."""
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGE
    save(model, path.parent, {} if large else None, path.name)
