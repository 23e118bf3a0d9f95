"""Pipelines: `pipeline.json` in a version folder, beside the stages and the models that it runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description
from unified_backend.settings import Settings
from unified_backend.tensors import Signature, TensorSpec

__all__ = [
    "FILE",
    "FORMAT",
    "MODELS",
    "STAGES",
    "Compiled",
    "CompiledStep",
    "CompiledTensor",
    "Pipeline",
    "read_compiled",
    "write_compiled",
]

FORMAT, FILE, STAGES, MODELS = "pipeline", "pipeline.json", "stages", "models"
_VERSION = 2


@dataclasses.dataclass(frozen=True)
class CompiledTensor:
    """A tensor of the pipeline; see `wiring.Tensor`."""

    dtype: str
    shape: tuple[int | str | None, ...] | None
    items: int | None

    def spec(self, name: str) -> TensorSpec:
        """As a tensor of this name."""
        return TensorSpec(name, self.dtype, self.shape)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A step of the pipeline.

    Attributes:
        kind: `stage` or `model`.
        path: of the stage's file or the model's directory, relative to the version folder.
    """

    name: str
    kind: str
    path: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A pipeline whose parts fit.

    Attributes:
        max_batch_size: 0 for a pipeline whose requests have whole shapes, of one sample each.
        inputs: names of tensors.
        outputs: output's name -> tensor.
        counts: tensor of items -> the tensor with their number that travels beside it; see `ensembles.counted`.
    """

    name: str
    max_batch_size: int
    max_items: int
    inputs: tuple[str, ...]
    outputs: Mapping[str, str]
    tensors: Mapping[str, CompiledTensor]
    steps: tuple[CompiledStep, ...]
    counts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def signature(self) -> Signature:
        """What requests bring and get; the first dimension is the batch, of samples or of their items."""
        inputs = tuple(self._served(name, name) for name in self.inputs)
        return Signature(inputs, tuple(self._served(name, tensor) for name, tensor in self.outputs.items()))

    @property
    def counted_signature(self) -> Signature:
        """The signature with the numbers of items beside these."""
        plain = self.signature
        return Signature(self._with_counts(plain.inputs), self._with_counts(plain.outputs))

    def _with_counts(self, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        names = dict.fromkeys(self.counts[spec.name] for spec in specs if spec.name in self.counts)
        return (*specs, *(TensorSpec(name, "INT32", (1, 1)) for name in names))

    def _served(self, name: str, tensor: str) -> TensorSpec:
        spec = self.tensors[tensor].spec(name)
        if self.max_batch_size and spec.shape:
            return dataclasses.replace(spec, shape=(None, *spec.shape[1:]))
        return spec


class Pipeline:
    """The format of pipelines, which `triton-unified ensemble build` writes."""

    name = FORMAT

    def detect(self, path: Path) -> bool:
        """Whether this is a pipeline's file; what it says is looked at when it is read."""
        return path.name == FILE

    def companions(self, path: Path) -> list[str]:
        """Everything beside it: the stages, and the directories of the models."""
        files = (file for file in sorted(path.parent.rglob("*")) if file.is_file() and file != path)
        return [file.relative_to(path.parent).as_posix() for file in files]

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """Inputs, outputs and steps.

        Raises:
            SourceError: it is damaged, or of another version of this package.
        """
        pipeline = read_compiled(path.parent, label)
        signature = pipeline.counted_signature
        steps = {step.name: step.kind for step in pipeline.steps}
        return Description(signature.inputs, signature.outputs, facts={"steps": steps})


def write_compiled(pipeline: Compiled, folder: Path) -> None:
    """Write `pipeline.json` into a version folder."""
    values = {"format": _VERSION, **dataclasses.asdict(pipeline)}
    (folder / FILE).write_text(json.dumps(values, indent=1) + "\n")


def read_compiled(folder: Path, label: str) -> Compiled:
    """The pipeline in a version folder.

    Raises:
        SourceError: it was written by another version of this package, or is damaged.
    """
    try:
        values = json.loads((folder / FILE).read_text("utf-8"))
        if values.pop("format") != _VERSION:
            raise ValueError("it was written by another version of this package")
        return _compiled(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{label}: {FILE} cannot be used",
            str(error) or type(error).__name__,
            "Write the pipeline again with `triton-unified ensemble build`",
        ) from None


def _compiled(values: dict[str, Any]) -> Compiled:
    tensors = {
        name: CompiledTensor(row["dtype"], None if row["shape"] is None else tuple(row["shape"]), row["items"])
        for name, row in values.pop("tensors").items()
    }
    steps = tuple(CompiledStep(**row) for row in values.pop("steps"))
    return Compiled(**{**values, "inputs": tuple(values["inputs"])}, tensors=tensors, steps=steps)
