"""What flows between the steps of a pipeline: types and shapes, and what is of samples and what of items."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from unified_backend.ensembles.definition import Definition, Step
from unified_backend.errors import ConfigError
from unified_backend.tensors import Signature, TensorSpec

__all__ = ["Tensor", "Wired", "wire"]

Shape = tuple[int | str | None, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the pipeline.

    Attributes:
        spec: its shape is whole; the first dimension is 1 for a tensor of the sample, and open for one of its items.
        giver: the step that gives it, in words.
        items: number of the step that made the items which its rows are of; None for a tensor of the sample.
    """

    spec: TensorSpec
    giver: str
    items: int | None


@dataclasses.dataclass(frozen=True)
class Wired:
    """A pipeline whose parts fit.

    Attributes:
        tensors: all of them, by name.
        levels: of each step, what its rows are of: None for samples, else the step that made the items.
        signatures: of each step.
        batched: of each step, whether it takes several samples or items as one batch.
    """

    definition: Definition
    tensors: Mapping[str, Tensor]
    levels: Sequence[int | None]
    signatures: Sequence[Signature]
    batched: Sequence[bool]


def wire(definition: Definition, signatures: Sequence[Signature], batched: Sequence[bool]) -> Wired:
    """Check that the steps fit one another.

    Args:
        signatures: of each step: a model's with its batch dimension, if it has one, as the open first one; a stage's as
            it declares it: first dimension 1 for what is of the sample, -1 for what is of items.
        batched: of each step, whether it is a model with a batch dimension.

    Raises:
        ConfigError: an input or output that a step has not got, or a type, rank or size that differs; names both sides.
    """
    tensors = {
        spec.name: Tensor(dataclasses.replace(spec, shape=(1, *(spec.shape or ()))), "the request", None)
        for spec in definition.inputs
    }
    levels: list[int | None] = []
    for step, signature, batch in zip(definition.steps, signatures, batched, strict=True):
        _require_names(definition, step, signature)
        inputs = {spec.name: spec for spec in signature.inputs}
        for own, name in step.inputs.items():
            _require_fitting(definition, step, inputs[own], tensors[name])
        levels.append(level := _level(definition, step, tensors))
        outputs = {spec.name: spec for spec in signature.outputs}
        for own, name in step.outputs.items():
            shape = outputs[own].shape
            items = level
            if step.stage:
                items = None if shape and shape[0] == 1 else step.index
            elif batch and shape:
                shape = (1 if level is None else None, *shape[1:])
            tensors[name] = Tensor(dataclasses.replace(outputs[own], name=name, shape=shape), str(step), items)
    _require_rows_with_dims(definition, tensors)
    return Wired(definition, tensors, levels, list(signatures), list(batched))


def _require_rows_with_dims(definition: Definition, tensors: Mapping[str, Tensor]) -> None:
    """
    Raises:
        ConfigError: an output's rows are scalars: Triton writes no empty dims behind a batch dimension.
    """
    for output, name in definition.outputs.items():
        spec = tensors[name].spec
        if spec.shape is not None and len(spec.shape) < 2:
            raise ConfigError(
                f'{definition.marks.at("outputs", output)}: output "{output}" is {_words(spec)}',
                "what is served has a dimension beside the first",
                "Declare [-1,1] where it is made",
            )


def _require_names(definition: Definition, step: Step, signature: Signature) -> None:
    for side, wiring, specs in (
        ("inputs", step.inputs, signature.inputs),
        ("outputs", step.outputs, signature.outputs),
    ):
        known = [spec.name for spec in specs]
        for own in wiring:
            if own not in known:
                raise ConfigError(
                    f'{definition.marks.at("steps", step.index, side, own)}: {step} has no {side[:-1]} "{own}"',
                    f"it has {', '.join(known) or 'none'}",
                    "Write its own name before the colon, and the pipeline's tensor after it",
                )
        if side == "inputs" and (missing := [name for name in known if name not in wiring]):
            raise ConfigError(
                f'{definition.marks.at("steps", step.index, side)}: {step} needs the input "{missing[0]}"',
                f"it is given {', '.join(wiring)}",
                "Say which tensor of the pipeline it is",
            )


def _level(definition: Definition, step: Step, tensors: Mapping[str, Tensor]) -> int | None:
    """What a step's rows are of; a stage is called once a sample, whatever it takes."""
    if step.stage:
        return None
    levels = {tensors[name].items: name for name in step.inputs.values()}
    if len(levels) > 1:
        one, other, *_ = levels.values()
        raise ConfigError(
            f"{step.where}: {step} takes rows of different kinds",
            f'"{one}" of {tensors[one].giver} and "{other}" of {tensors[other].giver} have not the same number of rows',
            "Join them in a stage before it",
        )
    return next(iter(levels))


def _require_fitting(definition: Definition, step: Step, own: TensorSpec, tensor: Tensor) -> None:
    """
    Raises:
        ConfigError: the tensor is not what the step takes.
    """
    given, why = tensor.spec, ""
    if own.triton != given.triton:
        why = f"the types are {own.triton} and {given.triton}"
    elif own.shape is not None and given.shape is not None:
        if len(own.shape) != len(given.shape):
            why = f"the ranks are {len(own.shape)} and {len(given.shape)}"
        else:
            pairs = list(zip(own.shape, given.shape, strict=True))
            if step.stage and own.shape[0] == 1 and tensor.items is not None:
                why = "it wants one row, of the sample, and there is one for each item"
            if not step.stage and isinstance(own.shape[0], int) and own.shape[0] != given.shape[0]:
                why = f"the model has no batch dimension: it takes {own.shape[0]} rows, and is given "
                why += "one for each item" if tensor.items is not None else f"{given.shape[0]}"
            # The first dimension is the batch: any number of rows goes to a model that has one.
            at = next((at for at, (a, b) in enumerate(pairs) if at and _differ(a, b)), None)
            why = f"axis {at} is {pairs[at][0]} and {pairs[at][1]}" if at is not None else why
    if why:
        raise ConfigError(
            f'{definition.marks.at("steps", step.index, "inputs", own.name)}: {step} takes "{own.name}" as '
            f'{_words(own)}, and "{given.name}" of {tensor.giver} is {_words(given)}',
            why,
            "Convert it in a stage between them",
        )


def _differ(one: int | str | None, other: int | str | None) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one != other


def _words(spec: TensorSpec) -> str:
    return f"{spec.triton.removeprefix('TYPE_')} {spec.dims}"
