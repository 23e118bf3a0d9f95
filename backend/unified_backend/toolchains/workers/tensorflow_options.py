"""tf2onnx's own options, as the parameters `converter` and `opset` give them: by their own names, and checked."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from unified_backend.errors import ConfigError

__all__ = ["opset_of", "options_of"]

# Parameters of tf2onnx that the worker itself sets, or whose values cannot be written as JSON.
_OWN = {
    *("const_node_values", "continue_on_error", "custom_op_handlers", "custom_rewriter", "frozen_graph", "graph_def"),
    *("initialized_tables", "input_names", "is_subgraph", "kwargs", "name", "opset", "optimizers"),
    *("output_frozen_graph", "output_names", "output_path", "tensors_to_rename", "tf_graph", "tfjs_path"),
    *("tflite_path", "verbose"),
}
_LEAST_OPSET = 7  # older ones ONNX Runtime does not read
_SIDES = {"inputs_as_nchw": "inputs", "outputs_as_nchw": "outputs"}


def options_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """The options as tf2onnx's functions take them, with inputs and outputs under their public names.

    Lists may be written as tf2onnx's command line takes them, with commas; tensors by their names in the graph, too.

    Raises:
        ConfigError: the installed version has no such option, or it does not take such a value.
    """
    from onnx import helper
    from tf2onnx import constants, convert
    from tf2onnx.tfonnx import process_tf_graph

    functions = (convert._convert_common, convert.from_graph_def, process_tf_graph)
    there = {name: each for function in functions for name, each in inspect.signature(function).parameters.items()}
    given = {name.replace("-", "_"): value for name, value in job.get("converter", {}).items()}
    if wrong := sorted(set(given) - (set(there) - _OWN)):
        raise ConfigError(
            f'parameter "converter" has the option {wrong[0]}',
            "the converter of TensorFlow models has none of that name",
            f"tf2onnx takes {', '.join(sorted(set(there) - _OWN))}",
        )
    options: dict[str, Any] = {}
    for name, value in given.items():
        of_a_switch = (_switch, "true or false") if isinstance(there[name].default, bool) else None
        parse, wanted = _KINDS.get(name) or of_a_switch or (_names, "a list of names")
        options[name] = parse(value)
        if options[name] is None:
            raise ConfigError(
                f'parameter "converter" has the option {name} with the value {json.dumps(value)[:200]}',
                f"it must be {wanted}",
                "Correct it",
            )
    if wrong := sorted(set(options.get("target", ())) - set(constants.POSSIBLE_TARGETS)):
        raise ConfigError(
            f'parameter "converter" has the target {wrong[0]}',
            "tf2onnx has none of that name",
            f"It takes {', '.join(constants.POSSIBLE_TARGETS)}",
        )
    if "extra_opset" in options:
        options["extra_opset"] = [helper.make_opsetid(domain, version) for domain, version in options["extra_opset"]]
    if "custom_ops" in options:
        own = constants.TENSORFLOW_OPSET.domain
        options["custom_ops"] = {operator: domain or own for operator, domain in options["custom_ops"].items()}
    for name, side in _SIDES.items():
        if name in options:
            options[name] = [_public(each, job, side, name) for each in options[name]]
    if "shape_override" in options:
        known = {row["name"] for row in job["inputs"]}
        shapes = {_by_any_name(name, job): shape for name, shape in options["shape_override"].items()}
        options["shape_override"] = {name: shape for name, shape in shapes.items() if name in known} | {
            name: shape for name, shape in options["shape_override"].items() if _by_any_name(name, job) not in known
        }
    return options


def opset_of(job: Mapping[str, Any]) -> int:
    """The opset to write.

    Raises:
        ConfigError: tf2onnx does not write it.
    """
    from tf2onnx import constants

    opset, newest = int(job["opset"]), max(constants.OPSET_TO_IR_VERSION)
    if not _LEAST_OPSET <= opset <= newest:
        version = importlib.metadata.version("tf2onnx")
        raise ConfigError(
            f'parameter "opset" is {opset}',
            f"tf2onnx {version} writes {_LEAST_OPSET} to {newest} that engines read",
            "Choose one of these, or leave it out",
        )
    return opset


def _switch(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _names(value: Any) -> list[str] | None:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        return None
    return [name.strip() for name in names]


def _opsets(value: Any) -> list[tuple[str, int]] | None:
    rows = [row.rpartition(":") for row in _names(value) or ()]
    if not rows or not all(domain and version.isdecimal() for domain, _, version in rows):
        return None
    return [(domain, int(version)) for domain, _, version in rows]


def _operators(value: Any) -> dict[str, str] | None:
    """`{operator: domain}`, or the command line's `operator:domain,operator`."""
    if isinstance(value, dict):
        return value if value and all(isinstance(domain, str) for domain in value.values()) else None
    rows = [row.partition(":") for row in (_names(value) or () if isinstance(value, str) else ())]
    return {operator: domain for operator, _, domain in rows} or None


def _shapes(value: Any) -> dict[str, list[int]] | None:
    if not isinstance(value, dict) or not value:
        return None
    whole = (isinstance(shape, list) and all(type(size) is int for size in shape) for shape in value.values())
    return value if all(whole) else None


_KINDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "extra_opset": (_opsets, 'a list of "domain:version"'),
    "custom_ops": (_operators, "an object of operators and their domains"),
    "shape_override": (_shapes, "an object of tensors' names and their shapes, lists of whole numbers"),
}


def _by_any_name(name: str, job: Mapping[str, Any]) -> str:
    """The public name of an input or output that is called by it, or by its tensor's name."""
    public = {tensor: each for each, tensor in job["inner"].items()}
    return public.get(name) or public.get(f"{name}:0") or name


def _public(name: str, job: Mapping[str, Any], side: str, option: str) -> str:
    names = [row["name"] if isinstance(row, dict) else row for row in job[side]]
    found = name if name in names else _by_any_name(name, job)
    if names and found not in names:  # Keras tells its outputs only when it has loaded the model
        raise ConfigError(
            f'parameter "converter" has the option {option} with the name {name}',
            f"the model's {side} are {', '.join(names)}",
            "Correct it",
        )
    return found
