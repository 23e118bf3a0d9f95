"""The JSON in which Keras keeps a model's layers: its inputs, its layers, and what in it is code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description, as_asked, choice, telling
from unified_backend.formats.excerpts import excerpt
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec, data_type

__all__ = ["MOST_CONFIG", "describe_config", "parse_config"]

MOST_CONFIG = 32 * 2**20  # bytes
_LISTED = 8
_DEPTH = 200
# Modules whose classes the toolchain has. `builtins` is where Keras files Python's own types and functions.
_OURS = ("keras", "tf_keras", "tensorflow", "builtins", "keras_core")
_BUILTINS = frozenset(
    {"function", "__lambda__", "str", "int", "float", "bool", "list", "tuple", "dict", "set", "slice", "bytes"}
    | {"NoneType", "ellipsis"}
)
_NUMPY_TYPES = {
    **{"float32": "FP32", "float64": "FP64", "float16": "FP16", "bfloat16": "BF16", "bool": "BOOL", "string": "STRING"},
    **{name: name.upper() for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}


def parse_config(text: str | bytes | None, name: str) -> dict[str, Any]:
    """The JSON object in a text.

    Args:
        name: of the file, for messages.

    Raises:
        SourceError: it is none.
    """
    try:
        value = json.loads(text or b"")
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{name}: the model's configuration does not parse",
            excerpt(error),
            "Save the model again with model.save(...)",
        ) from None
    if not isinstance(value, dict):
        raise SourceError(
            f"{name}: the model's configuration is no JSON object",
            f"it is a {type(value).__name__}",
            "Save the model again with model.save(...)",
        )
    return value


def describe_config(
    config: Mapping[str, Any], version: str, read: Mapping[str, Any], settings: Settings, label: str
) -> Description:
    """The description of a Keras model.

    Args:
        config: of the whole model: `class_name` and `config`.
        version: of the Keras that saved it; an empty string if it does not say.
        read: what the HDF5 reader found: `weights` and `parameters`, and `attributes` of a whole model.

    Raises:
        SourceError: it carries code that the settings do not allow, classes that are not Keras's own, or no inputs.
        ConfigError: a parameter names what the model has not got.
    """
    objects = list(_objects(config, label))
    outputs = _ends(config, "output_layers")
    facts = {
        "keras": version,
        "class": str(config.get("class_name")),
        "inputs": {name: _input_facts(row) for name, row in _input_layers(config).items()},
        "outputs": outputs,
        "layers": dict(Counter(str(row["class_name"]) for row in _layers(config)).most_common()),
        "parameters": read.get("parameters"),
        "weights": read.get("weights", {}),
    }
    with telling(facts):
        _refuse_code(objects, settings, label)
        _refuse_custom(objects, label)
        inputs = _inputs(config, label)
    job = {"legacy_keras": version.split(".")[0] in ("", "0", "1", "2"), "output_layers": outputs}
    return as_asked(Description(inputs, (), {}, job, facts), settings, label)


def _objects(config: Mapping[str, Any], label: str) -> Iterator[Mapping[str, Any]]:
    """Every JSON object of a configuration, of whatever depth."""
    waiting: list[tuple[Any, int]] = [(config, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _DEPTH:
            raise SourceError(
                f"{label}: the model's configuration is nested {_DEPTH} levels deep",
                "no model that Keras saves is",
                "Save the model again with model.save(...)",
            )
        if isinstance(value, dict):
            yield value
            waiting.extend((each, depth + 1) for each in value.values())
        elif isinstance(value, list):
            waiting.extend((each, depth + 1) for each in value)


def _refuse_code(objects: list[Mapping[str, Any]], settings: Settings, label: str) -> None:
    """Lambda layers hold marshalled byte code, which runs with the rights of whoever loads it."""
    code = [row for row in objects if _is_code(row)]
    names = list(dict.fromkeys(map(_name, [row for row in code if row["class_name"] == "Lambda"] or code)))
    if names and not settings.allow_unsafe:
        raise SourceError(
            f"{label}: the model carries Python byte code",
            f"{_listed(names)}: loading it would run whatever its maker wrote, with the rights of the conversion",
            "Replace Lambda layers by layers of Keras; if you trust the file: "
            f"{choice('allow_unsafe', 'true', 'convert it with -p allow_unsafe=true')}",
        )


def _is_code(row: Mapping[str, Any]) -> bool:
    """A Lambda layer of Keras 1 and 2 keeps its code in a list, every later one in an object."""
    if row.get("class_name") == "__lambda__":
        return True
    inner = row.get("config")
    if row.get("class_name") != "Lambda" or not isinstance(inner, dict):
        return False
    parts = (inner.get(part) for part in ("function", "output_shape", "mask"))
    kinds = (inner.get(f"{part}_type") for part in ("function", "output_shape", "mask"))
    return isinstance(inner.get("function"), list) or "lambda" in kinds or any(_holds_code(part) for part in parts)


def _holds_code(value: Any) -> bool:
    return isinstance(value, dict) and value.get("class_name") == "__lambda__"


def _refuse_custom(objects: list[Mapping[str, Any]], label: str) -> None:
    """Classes whose code is not in the file: what is surely not Keras's own; the rest is for Keras to say."""
    names = dict.fromkeys(name for row in objects if (name := _custom(row)))
    if names:
        raise SourceError(
            f"{label}: the model uses custom objects",
            f"the code of {_listed(list(names))} is not in the file",
            "Export it where that code is: model.export(folder) writes a SavedModel, which needs none",
        )


def _custom(row: Mapping[str, Any]) -> str | None:
    """Name of a class or function that is not of Keras, if this object surely names one."""
    name, module, registered = (row.get(key) for key in ("class_name", "module", "registered_name"))
    if not isinstance(name, str):
        return None
    if ">" in name:
        return name
    if "module" not in row or "config" not in row:
        return None
    if module is None:
        return registered if isinstance(registered, str) and ">" in registered else None
    root = str(module).split(".")[0]
    if root not in _OURS or (module == "builtins" and name not in _BUILTINS):
        return f"{module}.{name}"
    return None


def _layers(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The layers of a model; of Keras 1 and 2.0, a sequential model's configuration is the list itself."""
    inner = config.get("config")
    rows = inner.get("layers") if isinstance(inner, dict) else inner
    return [row for row in rows if isinstance(row, dict) and "class_name" in row] if isinstance(rows, list) else []


def _input_layers(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name of each input -> the layer that says its shape and type."""
    layers = {_name(row): row for row in _layers(config)}
    names = _ends(config, "input_layers")
    if not names and layers:  # sequential: the first layer says the shape, and may be no InputLayer
        first, row = next(iter(layers.items()))
        return {first if row.get("class_name") == "InputLayer" else f"{first}_input": row}
    return {name: layers.get(name, {}) for name in names}


def _input_facts(row: Mapping[str, Any]) -> dict[str, Any]:
    shape, dtype = _shape_and_type(row)
    return {
        "dtype": dtype or None,
        "shape": None if shape is None else [-1 if size is None else size for size in shape],
    }


def _inputs(config: Mapping[str, Any], label: str) -> tuple[TensorSpec, ...]:
    specs = []
    for name, row in _input_layers(config).items():
        shape, dtype = _shape_and_type(row)
        inner = row.get("config")
        if isinstance(inner, dict) and (inner.get("sparse") or inner.get("ragged")):
            raise SourceError(
                f"{label}: the input {name} is sparse or ragged",
                "Triton has only dense tensors",
                "Save a model with dense inputs",
            )
        if shape is None or data_type(dtype) is None:
            raise SourceError(
                f"{label}: the shape or type of the input {name} is not in the file",
                "the model was saved before it was built, or by code of its own",
                "Call it once, or build it, and save it again; or model.export(folder) to a SavedModel",
            )
        specs.append(TensorSpec(name, dtype, shape))
    if not specs:
        raise SourceError(
            f"{label}: the Keras model names no inputs",
            f'it is a "{config.get("class_name")}", whose layers are in Python code and not in the file',
            "Export it where that code is: model.export(folder) writes a SavedModel, which needs none",
        )
    return tuple(specs)


def _shape_and_type(row: Mapping[str, Any], depth: int = 0) -> tuple[tuple[int | None, ...] | None, str]:
    """Of what a layer takes: its own statement, else that of the first layer inside it."""
    inner = row.get("config")
    if isinstance(inner, dict):
        for key in ("batch_shape", "batch_input_shape"):
            if (shape := _shape(inner.get(key))) is not None:
                return shape, _type(inner.get("dtype") or inner.get("input_dtype"))
    layers = _layers(row)
    return _shape_and_type(layers[0], depth + 1) if layers and depth < _DEPTH else (None, "FP32")


def _shape(value: Any) -> tuple[int | None, ...] | None:
    """A shape; Keras 2.13 and later may wrap it: `{"class_name": "TupleWrapper" or "__tuple__", "items": [...]}`."""
    if isinstance(value, dict):
        value = value.get("items")
    if not isinstance(value, list):
        return None
    if not all(size is None or (type(size) is int and 0 <= size < 2**31) for size in value):
        return None
    return tuple(value)


def _type(value: Any) -> str:
    """Triton's name of a dtype, which may be a policy (`mixed_float16` takes and gives float32 at the border)."""
    if isinstance(value, dict):
        inner = value.get("config")
        value = inner.get("name") if isinstance(inner, dict) else None
    return _NUMPY_TYPES.get(str(value or "float32").removeprefix("mixed_"), "FP32" if value in (None, "") else "")


def _ends(config: Mapping[str, Any], key: str) -> list[str]:
    """Names of the layers in `input_layers` or `output_layers`, however deep: `[name, 0, 0]` is one."""
    inner = config.get("config")
    if not isinstance(inner, dict) or key not in inner:
        rows = _layers(config)
        return [_name(rows[-1])] if key == "output_layers" and rows else []
    names: list[str] = []
    waiting = [inner[key]]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, list) and value and isinstance(value[0], str):
            names.append(value[0])
        elif isinstance(value, (list, dict)):
            waiting[:0] = value.values() if isinstance(value, dict) else value
    return names


def _name(row: Mapping[str, Any]) -> str:
    inner = row.get("config")
    own = inner.get("name") if isinstance(inner, dict) else None
    return str(own or row.get("name") or row.get("class_name"))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
