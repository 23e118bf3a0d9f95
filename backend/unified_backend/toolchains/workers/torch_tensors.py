"""PyTorch's tensors and NumPy's arrays, and the structures that models answer with, brought to named arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from unified_backend.errors import ConversionError
from unified_backend.tensors import Array, TensorSpec

__all__ = ["leaves", "tensor_from", "to_array", "triton_dtype"]

# PyTorch's element types -> Triton's.
_TRITON = {
    **{"bool": "BOOL", "uint8": "UINT8", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64"},
    **{"float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16"},
}


def tensor_from(array: Array, spec: TensorSpec) -> Any:
    """A tensor of the input's type; bfloat16 comes as its bits."""
    import torch

    if spec.dtype == "BF16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def to_array(tensor: Any) -> Array:
    """A tensor as NumPy holds it here: bfloat16 as its bits."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy()).view(np.uint16)
    return np.asarray(tensor.numpy())


def triton_dtype(name: str, tensor: Any) -> str:
    """Triton's name of a tensor's element type.

    Raises:
        ConversionError: Triton has no such type.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _TRITON or tensor.is_sparse or tensor.is_quantized:
        raise ConversionError(
            f"output {name} holds {'sparse' if tensor.is_sparse else dtype} values",
            "Triton has no such tensors",
            "Save a model that answers with dense tensors of usual types",
        )
    return _TRITON[dtype]


def leaves(value: Any, renamed: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """The tensors in what a model answers: name -> the way to it from `o`, and the tensor.

    A dictionary's have their keys' names and a named tuple's their fields'; of others it is `OUTPUT__0`, `OUTPUT__1`,
    ..., as Triton's PyTorch backend calls them. Tensors deeper down have the names on their way, joined by `_`. None
    is left out.

    Args:
        renamed: name -> the one it is served under, if another.

    Raises:
        ConversionError: there is something else in it, or no tensor.
    """
    found: dict[str, tuple[str, Any]] = {}
    for names, way, tensor in _walk(value, (), "o"):
        if names and isinstance(names[0], str):
            name = "_".join(map(str, names))
        else:
            name = "_".join(["OUTPUT_", str(names[0] if names else 0), *map(str, names[1:])])
        name = renamed.get(name, name)
        while name in found:
            name += "_"
        found[name] = (way, tensor)
    if not found:
        raise ConversionError("the model answers with no tensor", f"it is a {type(value).__name__}", "Save another one")
    return found


def _walk(value: Any, names: tuple[str | int, ...], way: str) -> Iterator[tuple[tuple[str | int, ...], str, Any]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield names, way, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _walk(each, (*names, str(key) if isinstance(key, str) else int(key)), f"{way}[{key!r}]")
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for position, field in enumerate(value._fields):
            yield from _walk(value[position], (*names, field), f"{way}[{position}]")
    elif isinstance(value, (tuple, list)):
        for position, each in enumerate(value):
            yield from _walk(each, (*names, position), f"{way}[{position}]")
    elif value is not None:
        raise ConversionError(
            "the model answers with more than tensors",
            f"{way.replace('o', 'the answer', 1)} is a {type(value).__name__}",
            "Save a model that answers with tensors, alone or in tuples, lists and dictionaries",
        )
