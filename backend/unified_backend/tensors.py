"""What a tensor is to Triton, ONNX and NumPy: one table of data types, and the signature of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DATA_TYPES", "ROWS", "Array", "DataType", "Signature", "TensorSpec", "data_type"]

Array = npt.NDArray[Any]

# The first dimension of an output that has any number of rows for each sample, all of them below one another. No file
# has it: only the parameter `split_along_outer_axis` makes such outputs.
ROWS = "rows of the samples"


@dataclasses.dataclass(frozen=True)
class DataType:
    """One element type under each of its names.

    `numpy` is what the bytes are held in: NumPy has no bfloat16, so BF16 travels as the uint16 of the same bits.
    """

    triton: str
    onnx: int
    onnxruntime: str
    numpy: np.dtype[Any]


# Numbers: onnx.TensorProto.DataType; names: ONNX Runtime's NodeArg.type and Triton's model_config.proto.
DATA_TYPES = tuple(
    DataType(triton, onnx, f"tensor({onnxruntime})", np.dtype(numpy))
    for triton, onnx, onnxruntime, numpy in (
        ("BOOL", 9, "bool", np.bool_),
        ("UINT8", 2, "uint8", np.uint8),
        ("UINT16", 4, "uint16", np.uint16),
        ("UINT32", 12, "uint32", np.uint32),
        ("UINT64", 13, "uint64", np.uint64),
        ("INT8", 3, "int8", np.int8),
        ("INT16", 5, "int16", np.int16),
        ("INT32", 6, "int32", np.int32),
        ("INT64", 7, "int64", np.int64),
        ("FP16", 10, "float16", np.float16),
        ("FP32", 1, "float", np.float32),
        ("FP64", 11, "double", np.float64),
        ("STRING", 8, "string", np.object_),
        ("BF16", 16, "bfloat16", np.uint16),
    )
)
# A string that is no text: an encoded image, for example. ONNX has no such type; Triton's TYPE_STRING is both.
_BYTES = DataType("BYTES", 0, "", np.dtype(np.object_))
_BY_NAME = {"BYTES": _BYTES} | {
    name: row for row in DATA_TYPES for name in (row.triton, f"TYPE_{row.triton}", row.onnx, row.onnxruntime)
}


def data_type(name: str | int) -> DataType | None:
    """The data type with this Triton name (`TYPE_` or not), ONNX number or ONNX Runtime name, if Triton has it."""
    return _BY_NAME.get(name)


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one input or output.

    Attributes:
        name: as the model spells it.
        dtype: Triton's name without `TYPE_`, for example `FP32`; BYTES for a TYPE_STRING that is not text.
        shape: an int for a fixed dimension, a str for a named symbolic one, None for an unnamed one; None in place of
            the tuple if even the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype that holds the elements (uint16 for BF16)."""
        row = data_type(self.dtype)
        assert row is not None
        return row.numpy

    @property
    def triton(self) -> str:
        """The data type as config.pbtxt has it."""
        return "TYPE_STRING" if self.dtype == "BYTES" else f"TYPE_{self.dtype}"

    @property
    def dims(self) -> list[int]:
        """The shape as Triton writes it: -1 for a dimension that is not fixed, or fixed at 0, which it cannot write."""
        return [axis if isinstance(axis, int) and axis > 0 else -1 for axis in self.shape or ()]


@dataclasses.dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model, in the model's own order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """The signature as plain JSON values; `from_json` reads it back."""
        return {side: [dataclasses.asdict(spec) for spec in getattr(self, side)] for side in ("inputs", "outputs")}

    @staticmethod
    def from_json(values: Mapping[str, Sequence[Mapping[str, Any]]]) -> Signature:
        """The signature that `to_json` wrote."""
        return Signature(_specs(values["inputs"]), _specs(values["outputs"]))


def _specs(rows: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(row["name"], row["dtype"], None if row["shape"] is None else tuple(row["shape"])) for row in rows
    )
