"""What Triton's DALI backend serves: a serialised pipeline, or a Python file with `@autoserialize`."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

from unified_backend.errors import ConfigError, SourceError
from unified_backend.formats.dali_file import Port, is_pipeline, ports
from unified_backend.formats.description import Description, renamed
from unified_backend.settings import Settings
from unified_backend.tensors import ROWS, TensorSpec

__all__ = ["BATCH", "Dali", "rows_of", "spec_of", "split", "words"]

BATCH = "batch"  # a pipeline computes each sample by itself: every first dimension is the same one
_HEAD = 1 << 16
_DECORATED = re.compile(rb"^@(?:\w+\.)*autoserialize\b", re.MULTILINE)


def words(path: Path) -> str | None:
    """Why a Python file that is meant to define a pipeline is none that is served; None if it is meant otherwise."""
    if path.suffix != ".py":
        return None
    text = path.read_bytes()
    if path.name != "dali.py" and b"nvidia.dali" not in text:
        return None
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two of nesting without end
        return f"Python that does not parse: {str(error) or type(error).__name__}"
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    found = [one.name for one in functions if any("pipeline_def" in ast.unparse(each) for each in one.decorator_list)]
    if found:
        return f"the DALI pipeline {', '.join(found)} without `@autoserialize` above its `@pipeline_def`"
    return "Python without a function under `@autoserialize` and `@pipeline_def`, which DALI's pipelines are"


class Dali:
    """The format of DALI's pipelines."""

    name = "dali"

    def detect(self, path: Path) -> bool:
        """Whether it begins as a pipeline does, or is Python and has the decorator."""
        with path.open("rb") as file:
            head = file.read(_HEAD)
        return is_pipeline(head) or (path.suffix == ".py" and _DECORATED.search(head) is not None)

    def companions(self, path: Path) -> list[str]:
        """The Python file that a pipeline beside it was serialised from."""
        source = path.with_name("dali.py")
        return [source.name] if path != source and source.is_file() and self.detect(source) else []

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the pipeline says. A Python file is run for it, as Triton runs a model.py.

        Raises:
            SourceError: it is damaged, or an external source has no type or rank.
            ConfigError: the Python file does not run, or a parameter names what is not there.
        """
        try:
            inputs, outputs = ports(_serialised(path, settings, label))
        except ValueError as error:
            raise SourceError(f"{label}: {path.name} is damaged", str(error), "Serialise the pipeline again") from None
        if unsaid := [port.name for port in inputs if port.dtype is None or port.rank is None]:
            raise SourceError(
                f"{label}: the external source {unsaid[0]} of {path.name} has no type or rank",
                "nothing else says what the pipeline takes",
                f'Give it: fn.external_source(name="{unsaid[0]}", dtype=types.UINT8, ndim=1)',
            )
        if not inputs:
            raise SourceError(
                f"{label}: {path.name} has no input", "it has no external source", "Read files by fn.external_source"
            )
        files = tuple(port.name for port in inputs if (port.dtype, port.rank) == ("UINT8", 1))
        untyped = tuple(port.name for port in outputs if port.dtype is None)
        specs = (tuple(map(spec_of, inputs)), tuple(map(spec_of, outputs)))
        described = Description(*specs, files=files, positional=True, untyped=untyped)
        return renamed(described, settings.names, label)


def _serialised(path: Path, settings: Settings, label: str) -> bytes:
    if path.suffix != ".py":
        return path.read_bytes()
    from unified_backend.stages.dali import require_dali
    from unified_backend.stages.dali_definition import pipeline_bytes

    require_dali(label, path.name)
    return pipeline_bytes(path, 1, 1, settings.gpu, label, "_is_autoserialize")


def spec_of(port: Port) -> TensorSpec:
    """The tensor of a source or an output; what it does not say is FP32, or an unknown shape."""
    return TensorSpec(port.name, port.dtype or "FP32", None if port.rank is None else (BATCH, *[None] * port.rank))


def split(description: Description, names: tuple[str, ...], label: str) -> Description:
    """The description with these outputs, by the names that they are served under, split along their outer axis.

    Raises:
        ConfigError: there is no such output, or its samples are numbers without an axis.
    """
    known = {spec.name: spec for spec in description.outputs}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f'{label}: parameter "split_along_outer_axis" names {", ".join(unknown)}',
            f"the model's outputs are {', '.join(known)}",
            "Correct it in config.pbtxt",
        )
    try:
        outputs = tuple(rows_of(spec) if spec.name in names else spec for spec in description.outputs)
    except ValueError as error:
        raise ConfigError(
            f'{label}: parameter "split_along_outer_axis" cannot be followed', str(error), "Leave that output out"
        ) from None
    return dataclasses.replace(description, outputs=outputs)


def rows_of(spec: TensorSpec) -> TensorSpec:
    """An output whose samples' outer axis is taken away: of each sample [n, D...] there are n rows [D...].

    Raises:
        ValueError: a sample has no axis.
    """
    if spec.shape is None:
        return spec  # the pipeline does not say its rank
    if len(spec.shape) < 2:
        raise ValueError(f"a sample of {spec.name} is one number, and has no axis")
    return dataclasses.replace(spec, shape=(ROWS, *spec.shape[2:]))
