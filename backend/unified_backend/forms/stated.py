"""Types and shapes of inputs that a model's file does not tell: from a parameter, the user's samples, or the config."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.errors import ConfigError, SourceError
from unified_backend.formats.dali import split
from unified_backend.formats.description import Description, renamed, tensor_shape, typed
from unified_backend.samples import arrays_of
from unified_backend.settings import Settings
from unified_backend.tensors import DATA_TYPES

__all__ = ["stated"]

_INDEXED = re.compile(r".+__(\d+)")  # of Triton's PyTorch backend: INPUT__0 is the first argument
_TYPES = [row.triton for row in DATA_TYPES]
_NUMPY = {np.dtype(row.numpy): row.triton for row in DATA_TYPES if row.triton not in ("BF16", "STRING")}


def stated(
    description: Description, settings: Settings, config: Mapping[str, Any], samples: Sequence[Path], label: str
) -> Description:
    """The description with what its file leaves open: the parameter `inputs` first, then a sample, then the config.

    Before and after the config is completed the same is found, since what completes it comes from here.

    Inputs and outputs that the config calls by their numbers, as for Triton's PyTorch backend, are served by its names.

    Raises:
        ConfigError: a sample cannot be read, a type is none of Triton's, or the parameter names what the model has not.
        SourceError: an input is left; shows the lines to write.
    """
    if description.positional:
        named = _as_written(description, config, label)
        return split(named, settings.split_along_outer_axis, label)
    if not (description.unstated or description.numbered):
        return description
    names = [spec.name for spec in description.inputs]
    rows = [(_argument(str(row.get("name")), names), row) for row in config.get("input") or []]
    inputs = description.inputs
    if description.unstated:
        known: dict[str, _Stated] = {spec.name: (spec.dtype, spec.shape) for spec in inputs if spec.shape is not None}
        known |= {name: _by_config(row, config) for name, row in rows}
        known |= _by_parameter(settings, names, label) or _by_sample(samples, names)
        if missing := [name for name in description.unstated if name not in known]:
            raise SourceError(
                f"{label}: the shape of {', '.join(missing)} is not known",
                "the model was saved without the types and shapes of its inputs",
                "Write them in config.pbtxt: max_batch_size: 8 "
                + " ".join(_line(name, description.likely.get(name)) for name in missing),
            )
        inputs = tuple(
            dataclasses.replace(spec, dtype=known[spec.name][0], shape=known[spec.name][1])
            if spec.name in description.unstated
            else spec
            for spec in inputs
        )
    whole = dataclasses.replace(description, inputs=inputs, unstated=())
    other = [(name, str(row.get("name"))) for name, row in rows if name in names and name != row.get("name")]
    outputs = [str(row.get("name")) for row in config.get("output") or []]
    numbers = [(match[1], name) for name in outputs if (match := _INDEXED.fullmatch(name))]
    other += [(f"OUTPUT__{number}", name) for number, name in numbers if name != f"OUTPUT__{number}"]
    return renamed(whole, tuple(other), label)


def _as_written(description: Description, config: Mapping[str, Any], label: str) -> Description:
    """Of a DALI pipeline: files as TYPE_STRING where the config has that, and its names for the outputs, in order."""
    texts = {str(row.get("name")) for row in config.get("input") or [] if row.get("data_type") == "TYPE_STRING"}
    inputs = tuple(
        dataclasses.replace(spec, dtype="BYTES", shape=(*(spec.shape or ())[:1], 1))
        if spec.name in texts.intersection(description.files)
        else spec
        for spec in description.inputs
    )
    names = [str(row.get("name")) for row in config.get("output") or []]
    new = zip((spec.name for spec in description.outputs), names, strict=False)
    other = tuple((mine, name) for mine, name in new if mine != name)
    return renamed(dataclasses.replace(description, inputs=inputs), other, label)


_Stated = tuple[str, tuple[int | str | None, ...] | None]


def _by_parameter(settings: Settings, names: Sequence[str], label: str) -> dict[str, _Stated]:
    """`x[1,3,224,224]:FP32`; FP32 where no type follows.

    Raises:
        ConfigError: there is no such type, or no such input.
    """
    found: dict[str, _Stated] = {}
    for text in settings.inputs:
        shaped, given = typed(text)
        name, shape = tensor_shape(shaped)
        dtype = given or "FP32"
        if name not in names:
            raise ConfigError(
                f'{label}: parameter "inputs" names {name}',
                f"the model has {', '.join(names)}",
                "Correct the option, or the parameter in config.pbtxt",
            )
        if dtype not in _TYPES:
            raise ConfigError(
                f'{label}: parameter "inputs" gives {name} the type {dtype}',
                f"Triton's types are {', '.join(_TYPES)}",
                "Choose one of these",
            )
        if shape is not None:
            found[name] = (dtype, shape)
    return found


def _by_sample(paths: Sequence[Path], names: Sequence[str]) -> dict[str, _Stated]:
    """Of the first sample: its arrays' types and shapes; the first dimension is taken to be the batch."""
    for path in paths[:1]:
        return {
            name: ("STRING" if array.dtype.kind in "SU" else _NUMPY[array.dtype], (None, *array.shape[1:]))
            for name, array in arrays_of(path).items()
            if name in names and (array.dtype.kind in "SU" or array.dtype in _NUMPY)
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


def _line(name: str, likely: tuple[int | None, ...] | None) -> str:
    """The line of an input's config, filled in as far as its shape is known."""
    sizes = ", ".join(str(size or 224) for size in (likely or (None, 3, None, None))[1:])
    return f'input [ {{ name: "{name}" data_type: TYPE_FP32 dims: [ {sizes} ] }} ]'
