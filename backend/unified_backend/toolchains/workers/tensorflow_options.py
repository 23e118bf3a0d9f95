"""The parameters `converter` and `opset`: tf2onnx's own options, each of the kind that it takes, with public names."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from unified_backend.errors import ConfigError

__all__ = ["check_opset", "checked_ends", "options_of"]

# Parameters of tf2onnx that the worker itself sets, or whose values cannot be written as JSON.
_OWN = {
    *("const_node_values", "continue_on_error", "custom_op_handlers", "custom_rewriter", "frozen_graph", "graph_def"),
    *("initialized_tables", "input_names", "is_subgraph", "kwargs", "name", "opset", "optimizers"),
    *("output_frozen_graph", "output_names", "output_path", "tensors_to_rename", "tf_graph", "tfjs_path"),
    *("tflite_path", "verbose"),
}
_OLDEST_OPSET = 7  # tf2onnx has operators of older ones, which ONNX Runtime does not promise to read
_CHANNELS_RANK = 4  # of tensors whose channels tf2onnx moves


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What an option takes: in words, an example as JSON, and how it is read; None where the value is another kind."""

    takes: str
    example: str
    read: Callable[[Any], Any]


def options_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """tf2onnx's own options by their own names, as its functions take them.

    Lists may be written as tf2onnx's command line takes them, with commas. Inputs may be named as they are served, or
    as the tensors in the graph, `image:0`; here they come by the first alone. Outputs see `checked_ends`.

    Raises:
        ConfigError: the installed version has no such option, its value is of another kind, or there is no such input.
    """
    defaults = _defaults()
    options: dict[str, Any] = {}
    for given, value in job.get("converter", {}).items():
        name = given.replace("-", "_")
        if name not in defaults:
            raise ConfigError(
                f'parameter "converter" has the option {given}',
                "the converter of TensorFlow models has none of that name",
                f"tf2onnx takes {', '.join(sorted(defaults))}",
            )
        kind = _kind(name, defaults[name])
        read = kind.read(value)
        if read is None:
            raise ConfigError(
                f'parameter "converter" has the option {name} with the value {json.dumps(value)}',
                f"it takes {kind.takes}",
                f"Write it like {kind.example}",
            )
        options[name] = read
    _refuse_unknown_targets(options.get("target", ()))
    inputs = [row["name"] for row in job["inputs"]]
    if "inputs_as_nchw" in options:
        options["inputs_as_nchw"] = _public("inputs_as_nchw", options["inputs_as_nchw"], "input", inputs, job)
    if "shape_override" in options:
        shapes = options["shape_override"]
        names = _public("shape_override", shapes, "input", inputs, job)
        options["shape_override"] = dict(zip(names, shapes.values(), strict=True))
        _refuse_contradictions(options["shape_override"], job)
    return options


def checked_ends(
    options: Mapping[str, Any], job: Mapping[str, Any], inputs: Mapping[str, int], outputs: Mapping[str, int]
) -> dict[str, Any]:
    """The options with outputs by their public names, which are all known only once the model is open.

    Args:
        inputs: public name -> number of dimensions.
        outputs: likewise.

    Raises:
        ConfigError: there is no such output, or tf2onnx cannot move the channels of a tensor.
    """
    options = dict(options)
    for name, side, ranks in (("inputs_as_nchw", "input", inputs), ("outputs_as_nchw", "output", outputs)):
        if name not in options:
            continue
        options[name] = _public(name, options[name], side, list(ranks), job)
        if wrong := [each for each in options[name] if ranks[each] != _CHANNELS_RANK]:
            fitting = [each for each, rank in ranks.items() if rank == _CHANNELS_RANK]
            raise ConfigError(
                f'parameter "converter" has the option {name} with {wrong[0]}',
                f"this {side} has {ranks[wrong[0]]} dimensions, and only [N, H, W, C] can become [N, C, H, W]",
                f"Name {', '.join(fitting)}" if fitting else "Leave the option out",
            )
    return options


def check_opset(opset: int) -> None:
    """
    Raises:
        ConfigError: tf2onnx does not write this opset.
    """
    from onnx import defs
    from tf2onnx import __version__, constants

    newest = min(max(constants.OPSET_TO_IR_VERSION), defs.onnx_opset_version())
    if not _OLDEST_OPSET <= opset <= newest:
        raise ConfigError(
            f'parameter "opset" is {opset}',
            f"tf2onnx {__version__} writes opsets {_OLDEST_OPSET} to {newest}",
            "Choose one of these, or leave the parameter out",
        )


def _defaults() -> dict[str, Any]:
    """Each option that the installed tf2onnx takes -> its default."""
    from tf2onnx import convert
    from tf2onnx.tfonnx import process_tf_graph

    functions = (convert._convert_common, convert.from_graph_def, process_tf_graph)
    rows = [row for function in functions for row in inspect.signature(function).parameters.values()]
    return {row.name: row.default for row in rows if row.name not in _OWN}


def _kind(name: str, default: Any) -> _Kind:
    """Of an option: from the table, else what its default is."""
    if name in _KINDS:
        return _KINDS[name]
    kind = type(default)
    if kind is bool:
        return _Kind("true or false", f'{{"{name}": true}}', lambda value: value if isinstance(value, bool) else None)
    if default is None:
        return _Kind("a value", f'{{"{name}": ...}}', lambda value: value)
    example = f'{{"{name}": {json.dumps(default)}}}'
    return _Kind(f"a value like {json.dumps(default)}", example, lambda value: value if type(value) is kind else None)


def _names(value: Any) -> list[str] | None:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    return value if isinstance(value, list) and all(isinstance(name, str) and name for name in value) else None


def _shapes(value: Any) -> dict[str, list[int | None]] | None:
    """Each dimension a size, or open: -1 or null."""
    if not isinstance(value, dict) or not all(name and isinstance(shape, list) for name, shape in value.items()):
        return None
    sizes = [size for shape in value.values() for size in shape]
    if not all(size is None or (type(size) is int and (size == -1 or size > 0)) for size in sizes):
        return None
    return {name: [None if size == -1 else size for size in shape] for name, shape in value.items()}


def _opsets(value: Any) -> list[Any] | None:
    from onnx import helper

    rows = _names(value)
    pairs = [row.rpartition(":") for row in rows or ()]
    if rows is None or not all(domain and version.isdecimal() for domain, _, version in pairs):
        return None
    return [helper.make_opsetid(domain, int(version)) for domain, _, version in pairs]


def _operators(value: Any) -> dict[str, str] | None:
    """Operator -> domain."""
    from tf2onnx import constants

    if isinstance(value, dict):
        return value if all(isinstance(domain, str) and domain for domain in value.values()) else None
    if not isinstance(value, str) or not all(row.partition(":")[0].strip() for row in value.split(",")):
        return None
    pairs = [row.strip().partition(":") for row in value.split(",")]
    return {operator: domain or constants.TENSORFLOW_OPSET.domain for operator, _, domain in pairs}


_KINDS = {
    "target": _Kind("a list of targets", '{"target": ["nhwc"]}', _names),
    "inputs_as_nchw": _Kind("a list of inputs", '{"inputs_as_nchw": ["image"]}', _names),
    "outputs_as_nchw": _Kind("a list of outputs", '{"outputs_as_nchw": ["mask"]}', _names),
    "ignore_default": _Kind("a list of nodes", '{"ignore_default": ["is_training"]}', _names),
    "use_default": _Kind("a list of nodes", '{"use_default": ["is_training"]}', _names),
    "shape_override": _Kind(
        "an object with a shape for each input it names, a list of whole numbers, -1 for what stays open",
        '{"shape_override": {"image": [-1, 224, 224, 3]}}',
        _shapes,
    ),
    "extra_opset": _Kind("a list of domains with a version each", '{"extra_opset": ["ai.onnx.contrib:1"]}', _opsets),
    "custom_ops": _Kind(
        "an object with a domain for each operator, or a list in one string",
        '{"custom_ops": {"MyOperator": "my.domain"}} or {"custom_ops": "MyOperator:my.domain"}',
        _operators,
    ),
}


def _refuse_unknown_targets(given: Sequence[str]) -> None:
    from tf2onnx import constants

    if wrong := sorted(set(given) - set(constants.POSSIBLE_TARGETS)):
        raise ConfigError(
            f'parameter "converter" has the target {wrong[0]}',
            "tf2onnx has none of that name",
            f"It takes {', '.join(constants.POSSIBLE_TARGETS)}",
        )


def _public(option: str, given: Iterable[str], side: str, names: Sequence[str], job: Mapping[str, Any]) -> list[str]:
    """The names under which tensors are served, which may be given as those in the graph.

    Raises:
        ConfigError: one is neither, or two are one tensor.
    """
    inner = {name: str(job["inner"].get(name, "")) for name in names}
    found = []
    for name in given:
        tensor = name if ":" in name else f"{name}:0"
        by_tensor = [each for each in names if inner[each] in (name, tensor) or f"{inner[each]}:0" == tensor]
        candidates = [name] if name in names else [*by_tensor, *(each for each in names if f"{each}:0" == tensor)]
        if not candidates:
            there = [f"{each} ({inner[each]})" if inner[each] not in ("", each) else each for each in names]
            raise ConfigError(
                f'parameter "converter" has the option {option} with {name}',
                f"the model has no {side} of that name",
                f"It has {', '.join(there) or 'none'}",
            )
        found.append(candidates[0])
    if twice := [name for name in found if found.count(name) > 1]:
        raise ConfigError(
            f'parameter "converter" has the option {option} with {" and ".join(given)}',
            f"{twice[0]} is named twice",
            "Name it once",
        )
    return found


def _refuse_contradictions(shapes: Mapping[str, Sequence[int | None]], job: Mapping[str, Any]) -> None:
    """A shape fills in what the model leaves open; what the model fixes, its framework takes no other way."""
    if job["format"] == "tflite":
        raise ConfigError(
            'parameter "converter" has the option shape_override',
            "tf2onnx takes the shapes of a TensorFlow Lite model out of its file, whatever the option says",
            "Leave the option out, or convert to TensorFlow Lite again with other shapes",
        )
    own = {row["name"]: row["shape"] for row in job["inputs"]}
    for name, shape in shapes.items():
        fixed = own[name]
        if fixed is None:
            continue
        fits = len(shape) == len(fixed) and all(
            not isinstance(size, int) or wanted == size for wanted, size in zip(shape, fixed, strict=True)
        )
        if not fits:
            model = [size if isinstance(size, int) else -1 for size in fixed]
            wanted = [-1 if size is None else size for size in shape]
            raise ConfigError(
                f'parameter "converter" has the option shape_override with {name} as {wanted}',
                f"the model's own shape is {model}, and only what that leaves open (-1) can be set",
                "Correct the shape, or export the model again",
            )
