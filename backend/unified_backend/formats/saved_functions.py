"""Functions that a SavedModel keeps beside its signatures: by the attribute that calls them, what goes in and out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from unified_backend.formats.tensorflow_messages import DATA_TYPES, shape_of

__all__ = ["saved_functions"]

_MOST = 16  # functions that are shown: each layer of a Keras model has three, and nobody reads those of a hundred
_SIGNATURES = "signatures"  # the root's child whose functions are the signatures, which are shown as such
_DEPTH = 20


def saved_functions(objects: Any) -> dict[str, Any]:
    """What `saved_model_cli show --all` tells under "Concrete Functions", of the root and of what it holds.

    Args:
        objects: SavedObjectGraph; empty in a SavedModel of TensorFlow 1.

    Returns:
        `concrete_functions`: path (`encoder.__call__`) -> a list of what it may be called with, `inputs` and
        `outputs`; a tensor is its name, dtype and shape, another argument its value as text. `more_functions`: how
        many are left out, those farthest from the root.
    """
    traced = []
    for path, node in _functions(objects.nodes):
        names = node.function.concrete_functions or [node.bare_concrete_function.concrete_function_name]
        if functions := [objects.concrete_functions[name] for name in names if name in objects.concrete_functions]:
            traced.append((path, _arguments(node), functions))
    shown = {
        path: [_signature(function, arguments) for function in functions]
        for path, arguments, functions in traced[:_MOST]
    }
    return {"concrete_functions": shown, **({"more_functions": len(traced) - _MOST} if len(traced) > _MOST else {})}


def _functions(nodes: Any) -> Iterator[tuple[str, Any]]:
    """Path and SavedObject of each, those nearest to the root first; what has several paths has the shortest."""
    waiting = deque([(0, "")] if nodes else [])
    seen = {0}
    while waiting:
        number, path = waiting.popleft()
        for child in sorted(nodes[number].children, key=lambda child: child.local_name):
            if not 0 <= child.node_id < len(nodes) or child.node_id in seen or (not path and _is_signatures(child)):
                continue
            seen.add(child.node_id)
            inner = f"{path}.{child.local_name}" if path else child.local_name
            if nodes[child.node_id].WhichOneof("value") is not None:
                yield inner, nodes[child.node_id]
            else:
                waiting.append((child.node_id, inner))


def _is_signatures(child: Any) -> bool:
    return bool(child.local_name == _SIGNATURES)


def _arguments(node: Any) -> list[str]:
    """Names of the Python function's arguments, without `self`."""
    if node.WhichOneof("value") == "bare_concrete_function":
        return list(node.bare_concrete_function.argument_keywords)
    function = node.function
    pairs = function.function_spec.fullargspec.named_tuple_value.values
    names = [row.string_value for pair in pairs if pair.key == "args" for row in pair.value.list_value.values]
    return names[1:] if function.function_spec.is_method or names[:1] == ["self"] else names


def _signature(function: Any, arguments: list[str]) -> dict[str, Any]:
    positional, named = (*function.canonicalized_input_signature.tuple_value.values, None, None)[:2]
    inputs: dict[str, Any] = {}
    for number, value in enumerate(positional.tuple_value.values if positional is not None else ()):
        inputs.update(_leaves(value, arguments[number] if number < len(arguments) else f"argument {number + 1}"))
    if named is not None:
        inputs.update(_leaves(named, ""))
    return {"inputs": inputs, "outputs": dict(_leaves(function.output_signature, ""))}


def _leaves(value: Any, path: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """What a StructuredValue holds, each by its path: `x`, `images[0]`, `batch.mask`."""
    kind = value.WhichOneof("value")
    inner: list[tuple[str, Any]] | None = None
    match kind:
        case "tuple_value" | "list_value":
            inner = [(f"{path}[{number}]", each) for number, each in enumerate(getattr(value, kind).values)]
        case "named_tuple_value":
            inner = [(_dotted(path, pair.key), pair.value) for pair in value.named_tuple_value.values]
        case "dict_value":
            inner = [(_dotted(path, key), each) for key, each in sorted(value.dict_value.fields.items())]
    if inner is None or depth == _DEPTH:
        yield path or "output", _leaf(value, kind)
        return
    for name, each in inner:
        yield from _leaves(each, name, depth + 1)


def _dotted(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _leaf(value: Any, kind: str | None) -> Mapping[str, Any] | str:
    match kind:
        case "tensor_spec_value" | "bounded_tensor_spec_value":
            spec = getattr(value, kind)
            shape = shape_of(spec.shape)
            return {
                "name": spec.name,
                "dtype": DATA_TYPES.get(spec.dtype, str(spec.dtype)),
                "shape": None if shape is None else [-1 if size is None else size for size in shape],
            }
        case "type_spec_value":
            return str(value.type_spec_value.type_spec_class_name or "a composite tensor")
        case "float64_value" | "int64_value" | "string_value" | "bool_value":
            return repr(getattr(value, kind))
        case "tensor_dtype_value":
            return str(DATA_TYPES.get(value.tensor_dtype_value, value.tensor_dtype_value))
        case None | "none_value":
            return "None"
    return kind.removesuffix("_value")
