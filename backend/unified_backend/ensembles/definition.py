"""A pipeline as its author wrote it: inputs, outputs, and the steps between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.ensembles.yaml_file import Marks, read
from unified_backend.errors import ConfigError
from unified_backend.tensors import TensorSpec

__all__ = ["Definition", "Step", "read_definition"]

_MAX_BATCH_SIZE, _MAX_ITEMS = 8, 64


@dataclasses.dataclass(frozen=True)
class Step:
    """A model or a stage of a pipeline.

    Attributes:
        index: its place among the steps, from 0.
        name: of the model, or of the stage's file without its suffix.
        stage: the Python file; None for a model.
        source: of a model that the pipeline brings: its directory, or the model file or folder.
        parameters: of such a model's config.pbtxt.
        files: that go into its version folder.
        inputs: the step's own name -> tensor of the pipeline.
        outputs: likewise.
        where: `file:line:column` of the step.
    """

    index: int
    name: str
    stage: Path | None
    source: Path | None
    parameters: Mapping[str, str]
    files: tuple[Path, ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    where: str

    def __str__(self) -> str:
        return f"step {self.index + 1} ({self.stage.name if self.stage else self.name})"


@dataclasses.dataclass(frozen=True)
class Definition:
    """A pipeline.

    Attributes:
        inputs: tensors that a request brings; shapes are of one sample.
        outputs: the output's name -> tensor of the pipeline.
        max_batch_size: samples in one execution.
        max_items: rows that a step with a variable number of them gets at once.
    """

    name: str
    description: str
    inputs: tuple[TensorSpec, ...]
    outputs: Mapping[str, str]
    steps: tuple[Step, ...]
    max_batch_size: int
    max_items: int
    marks: Marks


def read_definition(path: Path) -> Definition:
    """The pipeline in a YAML file.

    Raises:
        ConfigError: the file is not as the schema has it, names a file that is not there, or a tensor that no step
            before gives; says where.
    """
    values, marks = read(path)
    inputs = tuple(
        TensorSpec(name, "BYTES" if row["dtype"] == "STRING" else row["dtype"], tuple(map(_open, row["dims"])))
        for name, row in values["inputs"].items()
    )
    steps = tuple(_step(index, row, marks) for index, row in enumerate(values["steps"]))
    definition = Definition(
        values["name"],
        values.get("description", ""),
        inputs,
        _names(values["outputs"]),
        steps,
        values.get("max_batch_size", _MAX_BATCH_SIZE),
        values.get("max_items", _MAX_ITEMS),
        marks,
    )
    _require_given(definition)
    _require_names_apart(definition)
    return definition


def _step(index: int, row: Mapping[str, Any], marks: Marks) -> Step:
    folder = marks.path.parent
    where = marks.at("steps", index)

    def path(key: str, written: str, *place: str | int) -> Path:
        found = folder / written
        if not found.exists():
            raise ConfigError(
                f"{marks.at('steps', index, key, *place)}: {key} is {written}",
                f"there is nothing of that name beside {marks.path.name}",
                "Correct the name, or put it there",
            )
        return found

    if "stage" in row and (given := [key for key in ("from", "parameters", "files") if key in row]):
        raise ConfigError(
            f"{marks.at('steps', index, given[0])}: a stage has no {given[0]}", "only a model has it", "Remove it"
        )
    if "from" not in row and (given := [key for key in ("parameters", "files") if key in row]):
        raise ConfigError(
            f"{marks.at('steps', index, given[0])}: {given[0]} of a model that the pipeline does not bring",
            "the model of the repository has its own config.pbtxt",
            "Write them there, or bring the model with `from`",
        )
    stage = path("stage", row["stage"]) if "stage" in row else None
    return Step(
        index,
        row.get("model") or Path(row["stage"]).stem,
        stage,
        path("from", row["from"]) if "from" in row else None,
        {name: _text(value) for name, value in (row.get("parameters") or {}).items()},
        tuple(path("files", written, number) for number, written in enumerate(row.get("files") or ())),
        _names(row["inputs"]),
        _names(row["outputs"]),
        where,
    )


def _require_given(definition: Definition) -> None:
    """
    Raises:
        ConfigError: a tensor is used that is given nowhere before, or given twice.
    """
    marks = definition.marks
    given = {spec.name: "inputs" for spec in definition.inputs}
    for step in definition.steps:
        for own, tensor in step.inputs.items():
            if tensor not in given:
                raise ConfigError(
                    f'{marks.at("steps", step.index, "inputs", own)}: {step} takes "{tensor}"',
                    f"what is there before this step is {', '.join(given)}",
                    "Correct the name, or put the step that gives it before this one",
                )
        for own, tensor in step.outputs.items():
            if tensor in given:
                raise ConfigError(
                    f'{marks.at("steps", step.index, "outputs", own)}: {step} gives "{tensor}" again',
                    f"{given[tensor]} gives it already",
                    "Give one of the two another name",
                )
            given[tensor] = str(step)
    taken = {tensor for step in definition.steps for tensor in step.inputs.values()} | {*definition.outputs.values()}
    for spec in definition.inputs:
        if spec.name not in taken:
            raise ConfigError(
                f'{marks.at("inputs", spec.name)}: input "{spec.name}" is not used',
                "no step takes it, and Triton refuses an ensemble with such an input",
                "Remove it, or give it to a step",
            )
    for own, tensor in definition.outputs.items():
        if tensor not in given:
            raise ConfigError(
                f'{marks.at("outputs", own)}: output "{own}" is the tensor "{tensor}"',
                f"the tensors are {', '.join(given)}",
                "Correct the name",
            )


def _require_names_apart(definition: Definition) -> None:
    """
    Raises:
        ConfigError: two steps that the pipeline brings would be one model of the repository.
    """
    seen: dict[tuple[bool, str], Step] = {}
    for step in definition.steps:
        other = seen.setdefault((step.stage is None, step.name), step)
        differing = [
            what for what in ("stage", "source", "parameters", "files") if getattr(other, what) != getattr(step, what)
        ]
        if differing:
            one = {"source": "from"}.get(differing[0], differing[0])
            raise ConfigError(
                f"{step.where}: {step} has the name of {other}, and another {one}",
                "each becomes a model of that name, with what the pipeline gives it",
                "Give its file another name"
                if step.stage
                else f"Name it otherwise: `model: {step.name}_2`, with the same `from`",
            )


def _names(written: Mapping[str, str] | list[str]) -> dict[str, str]:
    return dict(written) if isinstance(written, Mapping) else {name: name for name in written}


def _open(size: int) -> int | None:
    return size if size >= 0 else None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
