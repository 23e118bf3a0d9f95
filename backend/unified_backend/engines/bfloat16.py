"""bfloat16 without NumPy's help: tensors of ONNX Runtime to and from uint16 of the same bits."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING

import numpy as np

from unified_backend.tensors import Array, data_type

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["bfloat16_bits", "bfloat16_value"]


def bfloat16_value(bits: Array) -> onnxruntime.OrtValue:
    """A bfloat16 tensor from uint16 of the same bits."""
    import onnxruntime

    row = data_type("BF16")
    assert row is not None
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(bits), row.onnx)


def bfloat16_bits(value: onnxruntime.OrtValue) -> Array:
    """A copy of a bfloat16 tensor's elements as uint16."""
    shape = tuple(value.shape())
    count = math.prod(shape)
    if count == 0:
        return np.empty(shape, np.uint16)
    return np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr())).reshape(shape).copy()
