"""A DALI pipeline of the user's own as a stage: a Python file with `@pipeline_def`, or a serialised `.dali`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.engines.uploads import DeviceArray
from unified_backend.errors import ConfigError, EngineError, RequestError
from unified_backend.formats.dali_file import Port, decodes_sound, on_cpu, ports
from unified_backend.gpus import Gpu
from unified_backend.stages import Rows
from unified_backend.stages.containers import readable
from unified_backend.stages.dali import (
    DeviceRows,
    Pipeline,
    arguments,
    on_device,
    on_host,
    require_dali,
    samples_of,
    too_large,
)
from unified_backend.stages.dali_definition import pipeline_bytes
from unified_backend.stages.made_up import KINDS, sample
from unified_backend.stages.mp3 import as_wav, is_mp3
from unified_backend.tensors import Array, Signature, TensorSpec, data_type

__all__ = ["PipelineStage", "dali_stage"]

_SOURCE = 'fn.external_source(name="image", dtype=types.UINT8, ndim=1)'
_ONNX_NAMES = {"float32": "float", "float64": "double"}


def dali_stage(path: Path, max_batch_size: int, threads: int, gpu: Gpu | None, label: str) -> PipelineStage:
    """The stage that a file holds.

    A source of UINT8 with one dimension takes files: it is an input of BYTES [N, 1].

    Raises:
        ConfigError: the file does not run, has not exactly one pipeline, or the pipeline does not say what goes in and
            comes out; or DALI is not installed.
        EngineError: DALI does not build it.
    """
    require_dali(label, path.name)
    data = pipeline_bytes(path, max_batch_size, threads, gpu, label)
    return PipelineStage(data, path.name, max_batch_size, threads, gpu, label, files=True)


class PipelineStage:
    """A user's pipeline; see `Stage`.

    Args:
        data: the pipeline, serialised.
        file: its file's name, for messages.
        files: sources of UINT8 with one dimension are inputs of BYTES.
        known: the outputs with their types and ranks, where they were found out before.
    """

    def __init__(
        self,
        data: bytes,
        file: str,
        max_batch_size: int,
        threads: int,
        gpu: Gpu | None,
        label: str,
        files: bool,
        known: Sequence[Port] = (),
    ) -> None:
        """
        Raises:
            ConfigError: the pipeline does not say what goes in and comes out.
            EngineError: DALI does not build it.
        """
        from nvidia import dali

        data = data if gpu else on_cpu(data)
        self._file, self._hears = file, decodes_sound(data)
        self._inputs, outputs = _ports(data, file, label)
        outputs = tuple(known) or outputs
        self._limit = max(1, max_batch_size)
        options = arguments(max_batch_size, threads, gpu)
        self._pipeline = Pipeline(lambda: dali.Pipeline.deserialize(data, **options), label)
        if any(port.dtype is None or port.rank is None for port in outputs):
            outputs = self._completed(outputs, label)
        given = (_input(port, files) for port in self._inputs)
        self.signature = Signature(tuple(given), tuple(map(_spec, outputs)))

    def run(self, feeds: Mapping[str, Array]) -> Rows:
        """What the pipeline makes of a batch."""
        outputs, failed = self._ran([feeds])
        arrays = {}
        for spec, tensors in zip(self.signature.outputs, outputs or (), strict=False):
            array = on_host(tensors)
            if array is None:
                raise self.ragged(spec.name)
            arrays[spec.name] = array
        return Rows(arrays if outputs else self._empty(), failed)

    def run_on_device(self, feeds: Mapping[str, Array], kept: Collection[str]) -> DeviceRows:
        """As `run`; outputs that the pipeline makes on the GPU stay there if they are kept. See `OnDevice`."""
        outputs, failed = self._ran([feeds])
        arrays: dict[str, DeviceArray | Array] = {}
        for spec, tensors in zip(self.signature.outputs, outputs or (), strict=False):
            array = on_device(tensors) if spec.name in kept else on_host(tensors)
            if array is None:
                raise self.ragged(spec.name)
            arrays[spec.name] = array
        return DeviceRows(arrays, failed)

    def samples(self, requests: Sequence[Mapping[str, Array]]) -> list[dict[str, Array] | RequestError]:
        """What the pipeline makes of each sample of some requests, run as one batch; or why it refuses the sample."""
        outputs, failed = self._ran(requests)
        names = [spec.name for spec in self.signature.outputs]
        made = iter([dict(zip(names, row, strict=True)) for row in zip(*map(samples_of, outputs or ()), strict=True)])
        count = sum(len(feeds[self.signature.inputs[0].name]) for feeds in requests)
        return [failed[index] if index in failed else next(made) for index in range(count)]

    def ragged(self, name: str) -> RequestError:
        """That the samples of an output have different shapes."""
        return RequestError(
            f'{self._file}: output "{name}" is no batch',
            "its samples have different shapes",
            "Give them one shape in the pipeline (fn.pad, fn.resize), or send them in requests of their own",
        )

    def sized_outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs with the sizes that two made-up samples have in common: those do not depend on what is sent."""
        shapes = [[array.shape for array in made] for made in map(self._tried, range(2)) if not isinstance(made, str)]
        if len(shapes) < 2:
            return self.signature.outputs
        return tuple(
            dataclasses.replace(
                spec, shape=(None, *(size if size == other else None for size, other in zip(*pair, strict=True)))
            )
            if len(pair[0]) == len(pair[1]) == len(spec.shape or ()) - 1
            else spec
            for spec, *pair in zip(self.signature.outputs, *shapes, strict=True)
        )

    def close(self) -> None:
        """Free the pipeline."""
        self._pipeline.close()

    def _ran(self, requests: Sequence[Mapping[str, Array]]) -> tuple[Sequence[Any] | None, dict[int, RequestError]]:
        """DALI's outputs for the samples of some requests, None where all failed; and the errors of those that did."""
        rows = {
            spec.name: [row for feeds in requests for row in self._rows(spec, feeds[spec.name])]
            for spec in self.signature.inputs
        }
        count = len(next(iter(rows.values())))
        if count > self._limit or any(len(column) != count for column in rows.values()):
            sizes = ", ".join(f"{len(column)} of {name}" for name, column in rows.items())
            raise RequestError(
                f"{self._file}: the samples are no batch",
                f"there are {sizes}, and a batch has at most {self._limit} of each",
                "Send as many of each, and fewer at once",
            )
        failed: dict[int, RequestError] = {}
        for name, column in rows.items():
            for index, content in enumerate(column):
                if content.size == 0:
                    failed[index] = self._refused("it is empty", name)
                elif content.dtype == np.uint8 and content.ndim == 1:
                    try:
                        column[index] = np.frombuffer(self._decodable(content.tobytes()), np.uint8)
                    except ValueError as error:
                        failed[index] = self._refused(str(error), name)
        places = [index for index in range(count) if index not in failed]
        if not places:
            return None, failed
        ran = self._pipeline.run({name: [column[index] for index in places] for name, column in rows.items()})
        failed |= {places[row]: self._refused(why) for row, why in ran.failed.items()}
        return ran.outputs, failed

    def _decodable(self, file: bytes) -> bytes:
        """The file as DALI decodes it.

        Raises:
            ValueError: why it cannot be used.
        """
        if self._hears and is_mp3(file):
            return as_wav(file)
        file = readable(file)
        if why := too_large(file):
            raise ValueError(why)
        return file

    def _rows(self, spec: TensorSpec, array: Array) -> list[Array]:
        if array.dtype != object:
            return [np.ascontiguousarray(row) for row in array]
        contents = (row if isinstance(row, (bytes, str)) else np.ravel(row)[0] for row in array)
        raw = [text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text for text in contents]
        if not all(isinstance(content, bytes) for content in raw):
            raise RequestError(f"{self._file}: {spec.name} has no bytes", "it takes files", "Send the bytes of files")
        return [np.frombuffer(content, np.uint8) for content in raw]

    def _refused(self, why: str, name: str = "") -> RequestError:
        names = name or ", ".join(spec.name for spec in self.signature.inputs)
        return RequestError(f"{self._file}: {names} cannot be used", why, "Correct it")

    def _empty(self) -> dict[str, Array]:
        return {
            spec.name: np.empty(
                (0, *(size if isinstance(size, int) else 0 for size in (spec.shape or ())[1:])), spec.numpy
            )
            for spec in self.signature.outputs
        }

    def _completed(self, outputs: tuple[Port, ...], label: str) -> tuple[Port, ...]:
        """The outputs with the types and ranks that they have for a sample made up here.

        Raises:
            ConfigError: the pipeline refuses it.
        """
        made = self._tried(0)
        if not isinstance(made, str):
            return tuple(_seen(port, array) for port, array in zip(outputs, made, strict=True))
        unsaid = ", ".join(port.name for port in outputs if port.dtype is None or port.rank is None)
        raise ConfigError(
            f"{label}: {self._file} does not say what comes out",
            f"the outputs {unsaid} have no type or rank, and a made-up sample was refused: {made}",
            "Declare them: @pipeline_def(output_dtype=[types.FLOAT], output_ndim=[3])",
        )

    def _tried(self, which: int) -> list[Array] | str:
        """The outputs for one of two samples made up here, of different sizes, or why they were refused."""
        reason = ""
        for kind in KINDS:
            try:
                ran = self._pipeline.run({port.name: [sample(port, kind, which)] for port in self._inputs})
            except EngineError as error:
                reason = error.why
                continue
            if ran.outputs is not None:
                return [np.asarray(tensors.as_cpu()[0]) for tensors in ran.outputs]
            reason = ran.failed[0]
        return reason


def _ports(data: bytes, file: str, label: str) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    try:
        inputs, outputs = ports(data)
    except ValueError as error:
        raise ConfigError(f"{label}: {file} is no DALI pipeline", str(error), "Serialise it again") from None
    unsaid = [port.name for port in inputs if port.dtype is None or port.rank is None]
    if not inputs or unsaid:
        raise ConfigError(
            f"{label}: {file} does not say what goes in",
            f"the external source {', '.join(unsaid)} has no dtype or ndim" if inputs else "it has no external source",
            f"Write it so: {_SOURCE}",
        )
    return inputs, outputs


def _input(port: Port, files: bool) -> TensorSpec:
    if files and (port.dtype, port.rank) == ("UINT8", 1):
        return TensorSpec(port.name, "BYTES", (None, 1))
    return _spec(port)


def _spec(port: Port) -> TensorSpec:
    # A sample without dimensions is one number, and a batch of them [N, 1] to Triton would need a reshape.
    assert port.dtype
    return TensorSpec(port.name, port.dtype, (None,) * (1 + (port.rank or 0)))


def _seen(port: Port, array: Array) -> Port:
    row = data_type(f"tensor({_ONNX_NAMES.get(array.dtype.name, array.dtype.name)})")
    return Port(port.name, row.triton if row else port.dtype, array.ndim)
