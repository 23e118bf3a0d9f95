"""TorchScript archives, traced or scripted: `.pt`, `.pth`, `.jit`, known by what is in the zip."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend.errors import ConfigError, SourceError
from unified_backend.formats.description import Description, as_asked, renamed
from unified_backend.formats.pickles import Tensor, imports, tensors
from unified_backend.formats.torch_archive import TorchArchive, kind_of, opened
from unified_backend.formats.torch_code import refuse_code
from unified_backend.formats.torchscript_code import Argument, Method, methods
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["TorchScript"]

_STORAGES = {
    **{"FloatStorage": "FP32", "DoubleStorage": "FP64", "HalfStorage": "FP16", "BFloat16Storage": "BF16"},
    **{"LongStorage": "INT64", "IntStorage": "INT32", "ShortStorage": "INT16", "CharStorage": "INT8"},
    **{"ByteStorage": "UINT8", "BoolStorage": "BOOL"},
}
_DEFAULT = "forward"


class TorchScript:
    """The TorchScript format: one zip file with code, constants and weights."""

    name = "torchscript"

    def detect(self, path: Path) -> bool:
        """Whether the file is a zip with TorchScript's code and constants in it.

        Raises:
            SourceError: it begins as one and ends too early.
        """
        return kind_of(path) == self.name

    def companions(self, path: Path) -> list[str]:
        """None."""
        return []

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the code says of the chosen method; types and shapes where the model was traced.

        Raises:
            SourceError: it is damaged, or takes what cannot be served.
            ConfigError: a parameter names what the model has not got.
        """
        with opened(path) as archive:
            try:
                module, name = _root_class(archive)
                found = _methods(archive, module, name, path)
                traced = _traced(archive)
            except ValueError:
                refuse_code(path)  # what stands there instead may be worse than damage
                raise
            facts = _facts(archive, name, found, traced)
        key = settings.method or _DEFAULT
        if key not in found:
            what = f'parameter "method" names {key}' if settings.method else "the module has no method forward"
            raise ConfigError(f"{label}: {what}", f"it has {', '.join(found) or 'none'}", "Choose one of these")
        given = _arguments(found[key], settings, label)
        specs = _inputs(found[key], given, traced.get(key) or (), label)
        unstated = tuple(spec.name for spec in specs if spec.shape is None)
        job = {"method": key, "arguments": given, "stateful": settings.stateful}
        notes = tuple(f"argument {name} is {json.dumps(value)}" for name, value in given.items())
        described = Description(specs, (), {}, job, facts, notes, unstated, numbered=True, untyped=unstated)
        return renamed(described, settings.names, label) if unstated else as_asked(described, settings, label)


def _root_class(archive: TorchArchive) -> tuple[str, str]:
    """Module and name of the class of the whole model.

    Raises:
        ValueError: there is none.
    """
    first = next((each for each in imports(archive.read("data.pkl")) if each.startswith("__torch__")), "")
    if not first:
        raise ValueError("data.pkl names no class")
    module, _, name = first.rpartition(" ")
    return module, name


def _methods(archive: TorchArchive, module: str, name: str, path: Path) -> dict[str, Method]:
    file = f"code/{module.replace('.', '/')}.py"
    try:
        return methods(archive.read(file).decode(), name)
    except ValueError as error:
        raise SourceError(f"{path.name}: {file} cannot be read", str(error), "Save the model again") from None


def _traced(archive: TorchArchive) -> Mapping[str, Sequence[Any]]:
    """The inputs that each method was traced with; nothing for a scripted module."""
    if not archive.has("traced_inputs.pkl"):
        return {}
    found = tensors(archive.read("traced_inputs.pkl"))
    return found if isinstance(found, dict) else {}


def _arguments(method: Method, settings: Settings, label: str) -> dict[str, Any]:
    """Values of the arguments that no request gives: the parameter's, else the defaults.

    Raises:
        ConfigError: the parameter names none, or one without a value is left.
    """
    given = {name: json.loads(text) for name, text in settings.arguments}
    names = [argument.name for argument in method.arguments]
    if unknown := [name for name in given if name not in names]:
        raise ConfigError(
            f'{label}: parameter "arguments" names {unknown[0]}', f"the method has {', '.join(names)}", "Correct it"
        )
    for argument in method.arguments:
        if argument.name in given or argument.type == "Tensor":
            continue
        if argument.has_default:
            given[argument.name] = argument.default
        elif argument.type == "Optional[Tensor]":
            given[argument.name] = None
        else:
            raise ConfigError(
                f"{label}: the argument {argument.name} has no value",
                f"it is of type {argument.type}, which no request can hold",
                f'Give it in parameter "arguments", a JSON object: {{"{argument.name}": ...}}',
            )
    return given


def _inputs(method: Method, given: Mapping[str, Any], traced: Sequence[Any], label: str) -> tuple[TensorSpec, ...]:
    specs = []
    for position, argument in enumerate(method.arguments):
        if argument.name in given:
            continue
        seen = traced[position] if position < len(traced) else None
        specs.append(_spec(argument, seen, label))
    if not specs:
        raise SourceError(f"{label}: the model takes no tensor", "nothing can be asked of it", "Save another method")
    return tuple(specs)


def _spec(argument: Argument, seen: Tensor | None, label: str) -> TensorSpec:
    """An input; the first dimension of one that was traced is taken to be the batch, which a run proves."""
    if seen is None:
        return TensorSpec(argument.name, "FP32", None)
    storage, shape = seen
    dtype = _STORAGES.get(storage)
    if dtype is None:
        raise SourceError(
            f"{label}: the input {argument.name} cannot be served",
            f"it was traced with a {storage.removesuffix('Storage').lower()} tensor, which Triton has not got",
            "Trace the model with tensors of usual types",
        )
    return TensorSpec(argument.name, dtype, (None, *shape[1:]) if shape else ())


def _facts(archive: TorchArchive, name: str, found: Mapping[str, Method], traced: Mapping[str, Any]) -> dict[str, Any]:
    version = archive.read("version").decode("ascii", "replace").strip() if archive.has("version") else None
    return {
        "class": name,
        "version": version,
        "traced": sorted(traced),
        "methods": {
            key: {
                "arguments": {
                    each.name: f"{each.type} = {each.default}" if each.has_default else each.type
                    for each in method.arguments
                },
                "returns": method.returns,
            }
            for key, method in found.items()
        },
        "classes": sum(name.startswith("code/") and name.endswith(".py") for name in archive.names),
        "tensors": sum(name.startswith("data/") for name in archive.names),
    }
