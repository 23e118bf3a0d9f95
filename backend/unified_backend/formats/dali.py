"""What Triton's DALI backend serves: a serialised pipeline, or a Python file with `@autoserialize`."""

from __future__ import annotations

import re
from pathlib import Path

from unified_backend.errors import ConfigError, SourceError
from unified_backend.formats.dali_file import Port, is_pipeline, ports
from unified_backend.formats.description import Description, renamed
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["BATCH", "Dali", "spec_of"]

BATCH = "batch"  # a pipeline computes each sample by itself: every first dimension is the same one
_HEAD = 1 << 16
_DECORATED = re.compile(rb"^@(?:\w+\.)*autoserialize\b", re.MULTILINE)


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
            ConfigError: the Python file does not run, or a parameter asks for what is not served or not there.
        """
        if settings.split_along_outer_axis:
            raise ConfigError(
                f'{label}: parameter "split_along_outer_axis" is set',
                "outputs with more samples than the request had are not served",
                "Remove it, and the outputs are served whole; or serve this pipeline by Triton's own DALI backend",
            )
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
        described = Description(tuple(map(spec_of, inputs)), tuple(map(spec_of, outputs)), files=files, positional=True)
        return renamed(described, settings.names, label)


def _serialised(path: Path, settings: Settings, label: str) -> bytes:
    if path.suffix != ".py":
        return path.read_bytes()
    from unified_backend.stages.dali import require_dali
    from unified_backend.stages.dali_pipeline import pipeline_bytes

    require_dali(label, path.name)
    return pipeline_bytes(path, 1, 1, settings.gpu, label, "_is_autoserialize")


def spec_of(port: Port) -> TensorSpec:
    """The tensor of a source or an output; what it does not say is FP32, or an unknown shape."""
    return TensorSpec(port.name, port.dtype or "FP32", None if port.rank is None else (BATCH, *[None] * port.rank))
