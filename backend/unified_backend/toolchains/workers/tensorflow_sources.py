"""What every TensorFlow source is brought to before it is run and exported, and the types of its tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.errors import ConversionError
from unified_backend.tensors import Array, TensorSpec

__all__ = ["TENSORFLOW_TYPES", "Frozen", "Opened", "shape_of", "tensor_from", "to_array", "triton_dtype"]

# TensorFlow's names of element types -> Triton's.
_TRITON = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "string": "STRING",
    "bfloat16": "BF16",
}
TENSORFLOW_TYPES = {triton: name for name, triton in _TRITON.items()}


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A source as constants: what the exporter takes.

    Attributes:
        graph: a GraphDef without variables; None for TensorFlow Lite, which is exported from its file.
        inputs: public name -> the tensor's name in the graph.
        outputs: likewise.
        feeds: name of a tensor in the graph -> the constant that takes its place.
        tables: shared name of a lookup table -> its keys and values.
        lite: the TensorFlow Lite file to export.
        optimise: whether TensorFlow's own optimiser has yet to fold the graph.
    """

    graph: Any
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    feeds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tables: Mapping[bytes, tuple[Array, Array]] = dataclasses.field(default_factory=dict)
    lite: Path | None = None
    optimise: bool = False


@dataclasses.dataclass(frozen=True)
class Opened:
    """A source in its own framework.

    Attributes:
        inputs: public names, types and shapes as far as the framework knows them without a run.
        outputs: likewise.
        run: the framework's own answers to feeds under public names.
        freeze: makes the constants; with True, so that they may be larger than one protobuf message.
        weights: size of the variables, in bytes.
        words: strings that the model knows, to try it with.
        notes: what the user should know, a line each.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    run: Callable[[Mapping[str, Array]], dict[str, Array]]
    freeze: Callable[[bool], Frozen]
    weights: int = 0
    words: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def triton_dtype(tensor: str, dtype: Any) -> str:
    """Triton's name of a TensorFlow (or NumPy) element type.

    Args:
        tensor: whose type it is, for the message.

    Raises:
        ConversionError: Triton has no such type.
    """
    name = getattr(dtype, "name", str(dtype))
    if name not in _TRITON:
        raise ConversionError(
            f"output {tensor} holds {name} values",
            "Triton has no such data type",
            'Serve other tensors: parameter "outputs" for a graph, or another signature',
        )
    return _TRITON[name]


def shape_of(shape: Any) -> tuple[int | None, ...] | None:
    """A TensorShape as a tuple, None for what it leaves open."""
    return None if shape.rank is None else tuple(shape.as_list())


def tensor_from(array: Array, dtype: Any) -> Any:
    """A tensor of this TensorFlow type; bfloat16 comes as its bits."""
    import tensorflow as tf

    if dtype == tf.bfloat16 and array.dtype == np.uint16:
        return tf.bitcast(tf.constant(array), tf.bfloat16)
    return tf.constant(array, dtype)


def to_array(value: Any) -> Array:
    """What TensorFlow answered as NumPy holds it here: bfloat16 as its bits, strings as objects."""
    array = np.asarray(value)
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array
