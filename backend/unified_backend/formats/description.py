"""What a source says of itself, read from its bytes without the framework that wrote it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from unified_backend.errors import ConfigError, SourceError
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["Description", "as_asked", "choice", "renamed", "telling", "tensor_shape", "typed"]


@dataclasses.dataclass(frozen=True)
class Description:
    """What a source says of itself.

    Attributes:
        inputs: names as served, Triton's data types, shapes.
        outputs: likewise; () where only the framework can tell. A type or rank that the file does not state is FP32
            or None until an engine has loaded the model.
        inner: name as served -> name of the tensor in the graph (`serving_default_x:0`); {} for Keras.
        job: JSON values that a conversion needs beside these: signature key, tags, constants fed to the graph.
        facts: JSON values for people: every signature, operators and their counts, versions, quantisation.
        notes: a line each of what a user should know.
        unstated: inputs whose type and shape the file does not tell; see `forms.stated`.
        numbered: inputs and outputs may be called `NAME__0`, by their numbers, in a config.
        files: inputs of encoded files as bytes that end in zeros, which a config may make TYPE_STRING.
        positional: outputs may have any names in a config, and are taken in their order.
        untyped: inputs and outputs whose type the file does not tell.
        likely: shapes as far as the file tells them, of inputs that have none: for the lines that a user is shown.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    inner: Mapping[str, str] = dataclasses.field(default_factory=dict)
    job: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unstated: tuple[str, ...] = ()
    numbered: bool = False
    files: tuple[str, ...] = ()
    positional: bool = False
    untyped: tuple[str, ...] = ()
    likely: Mapping[str, tuple[int | None, ...]] = dataclasses.field(default_factory=dict)


def choice(parameter: str, value: str, command: str | None = None) -> str:
    """How to set a parameter, for a message: on the command line, and in a model repository.

    Args:
        command: what to do on the command line, if not to give the option of the parameter's name.
    """
    line = f'parameters {{ key: "{parameter}" value {{ string_value: "{value}" }} }}'
    return f"{command or f'--{parameter} {value}'}, or in config.pbtxt {line}"


@contextmanager
def telling(facts: Mapping[str, Any]) -> Iterator[None]:
    """Whatever is refused in this block is refused with these facts, for a person who asks what the file is."""
    try:
        yield
    except SourceError as error:
        error.facts = {**facts, **(error.facts or {})}
        raise


def as_asked(description: Description, settings: Settings, label: str) -> Description:
    """The description of a model that has a signature, with the parameters `inputs`, `outputs` and `names` applied.

    Raises:
        ConfigError: a parameter names what the model has not got.
    """
    chosen = _chosen(_reshaped(description, settings, label), settings, label)
    return renamed(chosen, settings.names, label)


def renamed(description: Description, names: tuple[tuple[str, str], ...], label: str) -> Description:
    """The description with the parameter `names` applied to what is served.

    Args:
        names: (name in the model, name it is served under). Where the outputs are not known, names that no input has
            are left to the conversion: `job["names"]`.

    Raises:
        ConfigError: the model has no such name, or two tensors would have one name.
    """
    if not names:
        return description
    new = dict(names)
    known = [spec.name for spec in (*description.inputs, *description.outputs)]
    unknown = {old: name for old, name in new.items() if old not in known}
    if unknown and description.outputs:
        raise ConfigError(
            f'{label}: parameter "names" names {", ".join(unknown)}',
            f"the model has {', '.join(known)}",
            "Correct the option, or the parameter in config.pbtxt",
        )
    for side in (description.inputs, description.outputs):
        served = [new.get(spec.name, spec.name) for spec in side]
        if len(set(served)) < len(served):
            raise ConfigError(
                f'{label}: parameter "names" gives one name to two tensors',
                f"they would be {', '.join(served)}",
                "Correct the option, or the parameter in config.pbtxt",
            )

    shared = {new.get(spec.name, spec.name) for spec in description.inputs}
    shared &= {new.get(spec.name, spec.name) for spec in description.outputs}
    if clash := sorted(shared & set(new.values())):
        raise ConfigError(
            f'{label}: parameter "names" gives one name to two tensors',
            f"an input and an output would both be {clash[0]}",
            "Correct it in config.pbtxt",
        )
    own = {name: name for name in known if name in new}

    def rename(side: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(dataclasses.replace(spec, name=new.get(spec.name, spec.name)) for spec in side)

    return dataclasses.replace(
        description,
        inputs=rename(description.inputs),
        outputs=rename(description.outputs),
        # What had no other name in the graph has one now.
        inner={new.get(name, name): tensor for name, tensor in ({**own, **description.inner}).items()},
        unstated=tuple(new.get(name, name) for name in description.unstated),
        untyped=tuple(new.get(name, name) for name in description.untyped),
        likely={new.get(name, name): shape for name, shape in description.likely.items()},
        job={**description.job, **({"names": {**description.job.get("names", {}), **unknown}} if unknown else {})},
    )


def _reshaped(description: Description, settings: Settings, label: str) -> Description:
    """The description with the shapes that the parameter `inputs` gives (`x:0[1,224,224,3]`); the inputs stay.

    Raises:
        ConfigError: it names what is no input.
    """
    shapes = {}
    types = {spec.name: spec.dtype for spec in description.inputs}
    for text in settings.inputs:
        shaped, dtype = typed(text)
        name, shape = tensor_shape(shaped)
        public = _public(description, name, "inputs", description.inputs, label)
        shapes[public] = shape
        if dtype not in (None, types[public]):
            raise ConfigError(
                f'{label}: parameter "inputs" gives {public} the type {dtype}',
                f"the model takes {types[public]}",
                "Leave it out",
            )
    inputs = (
        spec if shapes.get(spec.name) is None else dataclasses.replace(spec, shape=shapes[spec.name])
        for spec in description.inputs
    )
    return dataclasses.replace(description, inputs=tuple(inputs))


def _chosen(description: Description, settings: Settings, label: str) -> Description:
    """The description with those outputs only that the parameter `outputs` names, in its order.

    Raises:
        ConfigError: it names what is no output.
    """
    if not settings.outputs:
        return description
    by_name = {spec.name: spec for spec in description.outputs}
    names = [_public(description, name, "outputs", description.outputs, label) for name in settings.outputs]
    kept = {*names, *(spec.name for spec in description.inputs)}
    return dataclasses.replace(
        description,
        outputs=tuple(by_name[name] for name in names),
        inner={name: tensor for name, tensor in description.inner.items() if name in kept},
    )


def typed(text: str) -> tuple[str, str | None]:
    """Name and shape apart from the type that may follow: `ids[-1,128]:INT64`."""
    shaped, _, dtype = text.rpartition("]:")
    return (f"{shaped}]", dtype.strip().upper()) if shaped else (text, None)


def tensor_shape(text: str) -> tuple[str, tuple[int | None, ...] | None]:
    """Name and shape in tf2onnx's notation: `x:0[1,224,224,3]`; -1 is an open dimension, no brackets no shape."""
    match = re.fullmatch(r"(.+?)(?:\[([-\d,\s]*)\])?", text.strip(), re.DOTALL)
    assert match is not None, "the parameter's parser leaves no empty name"
    if match[2] is None:
        return match[1], None
    sizes = [int(size) for size in re.findall(r"-?\d+", match[2])]
    return match[1], tuple(size if size >= 0 else None for size in sizes)


def _public(description: Description, name: str, parameter: str, side: tuple[TensorSpec, ...], label: str) -> str:
    """The public name of an input or output given by it, or by its tensor's name."""
    known = [spec.name for spec in side]
    for each in known:
        if name in (each, f"{each}:0", description.inner.get(each)):
            return each
    raise ConfigError(
        f'{label}: parameter "{parameter}" names {name}',
        f"the model has {', '.join(known)}",
        "Correct the option, or the parameter in config.pbtxt",
    )
