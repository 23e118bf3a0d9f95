"""Tensors between Triton's stub and the engine: as views where the bytes agree, converted where they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from unified_backend.engines.bfloat16 import bfloat16_bits, bfloat16_value
from unified_backend.engines.uploads import DeviceArray
from unified_backend.errors import RequestError
from unified_backend.tensors import Array, TensorSpec

__all__ = ["device_reader", "device_tensor", "reader", "writer"]


def reader(spec: TensorSpec) -> Callable[[Any], Array]:
    """A function from a `pb_utils.Tensor` to the array the engine takes.

    Triton has no scalars: one travels as a tensor of shape [1].
    """
    read = _reader(spec)
    return _scalar(read) if spec.shape == () else read


def writer(pb_utils: Any, spec: TensorSpec) -> Callable[[Array], Any]:
    """A function from the array the engine gave to a `pb_utils.Tensor`; a scalar becomes one of shape [1]."""
    write = _writer(pb_utils, spec)
    return write if spec.shape else lambda array: write(array.reshape(array.shape or (1,)))


def device_reader(spec: TensorSpec) -> Callable[[Any], Array | DeviceArray]:
    """As `reader`, for tensors of numbers that may lie on the GPU, as FORCE_CPU_ONLY_INPUT_TENSORS "no" lets them."""
    read = reader(spec)
    return lambda tensor: read(tensor) if tensor.is_cpu() else _on_gpu(tensor)


def device_tensor(pb_utils: Any, name: str, array: DeviceArray) -> Any:
    """A `pb_utils.Tensor` of an output on the GPU."""
    return pb_utils.Tensor.from_dlpack(name, array.keep.to_dlpack())


def _on_gpu(tensor: Any) -> DeviceArray:
    """The memory of a tensor on the GPU, taken through DLPack."""
    import onnxruntime

    value = onnxruntime.capi.onnxruntime_pybind11_state.OrtValue.from_dlpack(tensor.to_dlpack())
    shape = tuple(value.shape())
    return DeviceArray(value.data_ptr(), shape, value)


def _reader(spec: TensorSpec) -> Callable[[Any], Array]:
    if spec.dtype == "STRING":
        return lambda tensor: _decoded(spec.name, tensor.as_numpy())
    if spec.dtype == "BF16":
        return lambda tensor: _bfloat16_bits(tensor.to_dlpack())
    return lambda tensor: tensor.as_numpy()


def _scalar(read: Callable[[Any], Array]) -> Callable[[Any], Array]:
    return lambda tensor: read(tensor).reshape(())


def _writer(pb_utils: Any, spec: TensorSpec) -> Callable[[Array], Any]:
    name = spec.name
    if spec.dtype == "STRING":
        return lambda array: pb_utils.Tensor(name, _encoded(array))
    if spec.dtype == "BF16":
        return lambda array: pb_utils.Tensor.from_dlpack(name, _bfloat16_capsule(array))
    return lambda array: pb_utils.Tensor(name, array)


def _decoded(name: str, array: Array) -> Array:
    """Bytes as str: ONNX strings are UTF-8, and ONNX Runtime would write `b'...'` into any other object."""
    try:
        flat = [element.decode() for element in array.reshape(-1)]
    except UnicodeDecodeError as error:
        raise RequestError(
            f'input "{name}" is not UTF-8', str(error), "ONNX strings are UTF-8: encode the text so"
        ) from None
    decoded = np.empty(len(flat), object)
    decoded[:] = flat
    return decoded.reshape(array.shape)


def _encoded(array: Array) -> Array:
    flat = [str(element).encode() for element in array.reshape(-1)]
    encoded = np.empty(len(flat), object)
    encoded[:] = flat
    return encoded.reshape(array.shape)


def _bfloat16_bits(capsule: Any) -> Array:
    """A bfloat16 DLPack capsule as uint16 of the same bits (a copy)."""
    import onnxruntime

    return bfloat16_bits(
        onnxruntime.OrtValue(onnxruntime.capi.onnxruntime_pybind11_state.OrtValue.from_dlpack(capsule))
    )


def _bfloat16_capsule(array: Array) -> Any:
    return bfloat16_value(array)._ortvalue.to_dlpack()
