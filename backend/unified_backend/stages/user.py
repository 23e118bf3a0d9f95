"""What a user's own stage is written with: one decorator.

from unified_backend.stages.user import stage

@stage(inputs={"scores": "FP32[-1,10]"}, outputs={"best": "INT64[-1]"})
def best(scores):
    return scores.argmax(1)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from unified_backend.tensors import Signature, TensorSpec, data_type

__all__ = ["declared", "stage"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_TENSOR = re.compile(r"\s*(?:TYPE_)?([A-Z0-9]+)\s*\[([-\d,\s]*)\]\s*")
_ATTRIBUTE = "__unified_stage__"


def stage(inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Callable[[_Function], _Function]:
    """Make a function a stage: NumPy arrays in, by name, and NumPy arrays out.

    Args:
        inputs: name -> type and shape, `FP32[-1,3,224,224]`: -1 is open, and the first dimension is the batch. STRING
            is text (arrays of `str`), BYTES is anything else that Triton calls TYPE_STRING (arrays of `bytes`).
        outputs: likewise. The function returns one array, a tuple of them in this order, or a dictionary.

    Raises:
        ValueError: a type or shape that cannot be read.
    """
    signature = Signature(_specs(inputs), _specs(outputs))

    def declare(function: _Function) -> _Function:
        setattr(function, _ATTRIBUTE, signature)
        return function

    return declare


def declared(function: Any) -> Signature | None:
    """What was declared of a function; None if it is no stage."""
    signature = getattr(function, _ATTRIBUTE, None)
    return signature if isinstance(signature, Signature) else None


def _specs(tensors: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(name, text) for name, text in tensors.items())


def _spec(name: str, text: str) -> TensorSpec:
    match = _TENSOR.fullmatch(text)
    if match is None or data_type(match[1]) is None:
        raise ValueError(f'"{name}" is "{text}", and must be a type of Triton and a shape: FP32[-1,3,224,224]')
    sizes = [int(size) for size in match[2].split(",") if size.strip()]
    return TensorSpec(name, match[1], tuple(size if size >= 0 else None for size in sizes))
