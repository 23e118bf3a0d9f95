"""Types and shapes of inputs that a model's file does not tell: from a parameter, the user's samples, or the config."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description, renamed, tensor_shape
from unified_backend.settings import Settings
from unified_backend.tensors import DATA_TYPES

__all__ = ["stated"]

_INDEXED = re.compile(r".+__(\d+)")  # of Triton's PyTorch backend: INPUT__0 is the first argument
_NUMPY = {np.dtype(row.numpy): row.triton for row in DATA_TYPES if row.triton not in ("BF16", "STRING")}


def stated(
    description: Description, settings: Settings, config: Mapping[str, Any], samples: Sequence[Path], label: str
) -> Description:
    """The description with what its file leaves open: the parameter `inputs` first, then a sample, then the config.

    Before and after the config is completed the same is found, since what completes it comes from here.

    Raises:
        ConfigError: the config has inputs that the model has not got.
        SourceError: an input is left; shows the lines to write.
    """
    if not description.unstated:
        return description
    rows = list(config.get("input") or [])
    names = [spec.name for spec in description.inputs]
    served = {_argument(str(row.get("name")), names): str(row.get("name")) for row in rows}
    known = _by_parameter(settings) or _by_sample(samples, names)
    known |= {name: _by_config(row, config) for name, row in zip(served, rows, strict=True) if name not in known}
    missing = [name for name in description.unstated if name not in known]
    if missing:
        raise SourceError(
            f"{label}: the shape of {', '.join(missing)} is not known",
            "the model was saved without the types and shapes of its inputs",
            f"Write them in config.pbtxt: max_batch_size: 8 {' '.join(map(_line, missing))}",
        )
    inputs = tuple(
        dataclasses.replace(spec, dtype=known[spec.name][0], shape=known[spec.name][1])
        if spec.name in description.unstated
        else spec
        for spec in description.inputs
    )
    whole = dataclasses.replace(description, inputs=inputs, unstated=())
    other = tuple((name, mine) for name, mine in served.items() if name in names and name != mine)
    return renamed(whole, other, label) if other else whole


_Stated = tuple[str, tuple[int | None, ...] | None]


def _by_parameter(settings: Settings) -> dict[str, _Stated]:
    """`x[1,3,224,224]:FP32`; FP32 where no type follows."""
    found: dict[str, _Stated] = {}
    for text in settings.inputs:
        shaped, _, dtype = text.rpartition("]:")
        name, shape = tensor_shape(f"{shaped}]" if shaped else text)
        if shape is not None:
            found[name] = (dtype.strip().upper() if shaped else "FP32", shape)
    return found


def _by_sample(paths: Sequence[Path], names: Sequence[str]) -> dict[str, _Stated]:
    """Of the first sample: its arrays' types and shapes; the first dimension is taken to be the batch."""
    for path in paths[:1]:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in names if name in arrays.files}
        return {
            name: ("STRING" if array.dtype.kind in "SU" else _NUMPY[array.dtype], (None, *array.shape[1:]))
            for name, array in found.items()
            if array.dtype.kind in "SU" or array.dtype in _NUMPY
        }
    return {}


def _by_config(row: Mapping[str, Any], config: Mapping[str, Any]) -> _Stated:
    written = row["reshape"].get("shape") if "reshape" in row else row.get("dims")
    dims = tuple(size if size >= 0 else None for size in map(int, written or ()))
    batched = int(config.get("max_batch_size") or 0) > 0
    dtype = str(row.get("data_type") or "TYPE_FP32").removeprefix("TYPE_")
    return dtype, (None, *dims) if batched else dims


def _argument(name: str, names: Sequence[str]) -> str:
    """The argument that an input of the config is: of its name, else by its number."""
    match = _INDEXED.fullmatch(name)
    if name not in names and match and int(match[1]) < len(names):
        return names[int(match[1])]
    return name


def _line(name: str) -> str:
    return f'input [ {{ name: "{name}" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] }} ]'
